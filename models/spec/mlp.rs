//! The words for what a block does with each position alone: dense MLPs and experts.

/// The feed-forward half of a block.
#[derive(Debug, Clone, PartialEq)]
pub enum Mlp {
    /// `down(act(gate(x)) · up(x))`.
    Gated(Dense),
    /// `down(act(up(x)))`.
    Plain(Dense),
    /// A few of many MLPs, chosen per token.
    Experts(Experts),
}

/// Width, activation and biases of a dense MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Inner width.
    pub inner: usize,
    /// The activation.
    pub activation: Activation,
    /// Whether the projections have biases.
    pub bias: bool,
}

/// A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538; Mixtral: arXiv:2401.04088).
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub n_experts: usize,
    /// How many each token uses.
    pub n_active: usize,
    /// Inner width of one expert.
    pub inner: usize,
    /// The activation.
    pub activation: Activation,
    /// Whether each expert is [`Mlp::Gated`] or [`Mlp::Plain`].
    pub gated: bool,
    /// How experts are chosen and weighted.
    pub router: Router,
    /// An MLP of the same kind that every token passes besides.
    pub shared: Option<Dense>,
}

/// How experts are chosen, and how their results are weighted.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// What becomes of the router's outputs.
    pub scores: Scores,
    /// A stored number per expert is added to its score for the choice, not for the weight (DeepSeek-AI 2024,
    /// arXiv:2412.19437, section 2.1.2).
    pub correction: bool,
    /// Experts are chosen among the best groups only.
    pub groups: Option<Groups>,
    /// The weights of the chosen experts are divided by their sum.
    pub normalised: bool,
    /// The weights are multiplied by this.
    pub factor: f32,
}

/// Scores of experts from the router's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// Softmax over all experts.
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
}

/// Groups of neighbouring experts; a group counts as much as its two best experts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Number of groups; divides the number of experts into groups of two or more.
    pub n_groups: usize,
    /// Groups whose experts may be chosen.
    pub n_active: usize,
}

/// Activation functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// GELU approximated with tanh.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
}
