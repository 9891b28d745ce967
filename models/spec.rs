//! The vocabulary in which a model is described: what the graph must compute, and how the checkpoint stores it.
//!
//! A description is per layer, so alternating windows, layers without position, dense layers followed by
//! experts, and hybrids cost nothing. Widths are in elements, `n_` means a count.

use crate::names::Names;

/// A model: from token ids to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The name in `architectures`, such as `MistralForCausalLM`.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding: token ids are below this.
    pub vocab: usize,
    /// The number of positions the model was made for, where the configuration says so.
    pub max_positions: Option<usize>,
    /// How ids become vectors.
    pub embedding: Embedding,
    /// The blocks, from the first to the last.
    pub layers: Vec<Layer>,
    /// The norm before the head.
    pub final_norm: Norm,
    /// How vectors become logits.
    pub head: Head,
    /// How the checkpoint stores the weights.
    pub stored: Stored,
    /// The id that begins a text.
    pub bos: Option<u32>,
    /// The ids that end a text, as the configuration lists them.
    pub eos: Vec<u32>,
}

/// How token ids become vectors.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Embedding {
    /// A norm right after the lookup (BLOOM).
    pub norm: Option<Norm>,
    /// Rows of a table of learned positions that is added (GPT-2).
    pub learned_positions: Option<usize>,
}

/// How the last vectors become logits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Head {
    /// The head is the embedding matrix.
    pub tied: bool,
    /// A bias is added (GPT-J).
    pub bias: bool,
}

/// One block. A block without mixer or without MLP skips that half (Nemotron-H).
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The norm of the mixer's input.
    pub mixer_norm: Option<Norm>,
    /// Attention, or what replaces it.
    pub mixer: Option<Mixer>,
    /// A norm of the mixer's output (OLMo-2).
    pub post_mixer_norm: Option<Norm>,
    /// The norm of the MLP's input.
    pub mlp_norm: Option<Norm>,
    /// The feed-forward half.
    pub mlp: Option<Mlp>,
    /// A norm of the MLP's output (OLMo-2).
    pub post_mlp_norm: Option<Norm>,
    /// How the halves meet the residual stream.
    pub residual: Residual,
}

/// How mixer and MLP meet the residual stream `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// `x += mixer(norm(x))`, then `x += mlp(norm'(x))`.
    Sequential,
    /// `x += mixer(norm(x)) + mlp(norm'(x))`, both from the same `x` (Falcon 40B).
    Parallel,
    /// The same with one norm for both (Falcon 7B, GPT-J).
    ParallelSharedNorm,
}

/// A normalisation over the last dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub eps: f32,
}

/// The kinds of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) · weight` (Zhang and Sennrich 2019, arXiv:1910.07467).
    Rms,
    /// `(x − mean) / sqrt(var + eps) · weight + bias` (Ba et al. 2016, arXiv:1607.06450).
    Layer {
        /// Whether a bias is stored.
        bias: bool,
        /// The stored weight is the weight minus one (Nemotron's LayerNorm1P).
        minus_one: bool,
    },
}

/// What mixes information between positions.
#[derive(Debug, Clone, PartialEq)]
pub enum Mixer {
    /// Softmax attention over the cache.
    Attention(Attention),
}

/// Softmax attention with grouped key/value heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a query, key and value head.
    pub head_dim: usize,
    /// How a position enters.
    pub position: Position,
    /// Only the last `window` positions are seen, the own one included.
    pub window: Option<usize>,
    /// Scores are multiplied by this; `1/sqrt(head_dim)` in nearly every model.
    pub scale: f32,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub o_bias: bool,
    /// A norm of queries and keys before rotation.
    pub qk_norm: Option<QkNorm>,
    /// Queries are scaled by their position.
    pub query_scale: Option<QueryScale>,
}

/// A norm of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub enum QkNorm {
    /// Over each head (Qwen 3).
    PerHead(Norm),
    /// Over the whole projection (OLMo-2).
    FullWidth(Norm),
}

/// `q · (1 + beta · ln(1 + floor(position / original)))` (Ministral 3, after Llama 4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScale {
    /// Strength; 0 means none.
    pub beta: f32,
    /// Positions before the first step.
    pub original: usize,
}

/// How a position enters attention.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// Not at all (SmolLM3's layers without position, Nemotron-H; learned positions enter at the embedding).
    None,
    /// Rotary embedding (Su et al. 2021, arXiv:2104.09864).
    Rope(Rope),
    /// A bias that grows with distance (Press et al. 2021, arXiv:2108.12409), times this factor.
    Alibi {
        /// 1 in BLOOM; `1/sqrt(head_dim)` in Falcon.
        factor: f32,
    },
}

/// Rotary embedding of the first `rotary_dim` elements of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head that are rotated; even.
    pub rotary_dim: usize,
    /// Which elements form a pair.
    pub style: RopeStyle,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with `i + rotary_dim/2` (Hugging Face's Llama).
    Halves,
    /// Element `2i` with `2i + 1` (Helium, GPT-J).
    Interleaved,
}

/// How rotary frequencies are stretched for contexts longer than those of the training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// How much longer.
        factor: f64,
    },
    /// The base grows once the context is longer than `original` ("dynamic NTK").
    Dynamic {
        /// How much longer.
        factor: f64,
        /// Positions of the training.
        original: usize,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// How much longer.
        factor: f64,
        /// Wavelengths above `original / low` are scaled fully.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Positions of the training.
        original: usize,
    },
    /// NTK by parts (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// How much longer.
        factor: f64,
        /// Positions of the training.
        original: usize,
        /// Rotations within `original` above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided by `factor`.
        beta_slow: f64,
        /// Sines and cosines are multiplied by this.
        magnitude: f32,
        /// Whether the borders of the blend are rounded to whole dimensions.
        truncate: bool,
    },
}

/// The feed-forward half of a block.
#[derive(Debug, Clone, PartialEq)]
pub enum Mlp {
    /// `down(act(gate(x)) · up(x))`.
    Gated(Dense),
    /// `down(act(up(x)))`.
    Plain(Dense),
    /// A few of many gated MLPs, chosen per token.
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
    /// The activation of the gate.
    pub activation: Activation,
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

/// How the checkpoint stores the weights: undone once, at load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stored {
    /// The names of the tensors.
    pub names: &'static Names,
    /// Order of the rows of the query and key projections within a head, where the graph turns halves.
    pub qk_rows: RopeStyle,
    /// Whether query, key and value projections are one matrix.
    pub qkv: Qkv,
    /// Projections are stored `[cols, rows]` (GPT-2's Conv1D).
    pub transposed: bool,
    /// Rows and columns that share a scale, where weights are stored in 8-bit floats; `None`: the whole matrix.
    pub fp8_block: Option<[usize; 2]>,
}

impl Stored {
    /// Separate projections `[rows, cols]` under `names`.
    #[must_use]
    pub const fn plain(names: &'static Names) -> Self {
        Self {
            names,
            qk_rows: RopeStyle::Halves,
            qkv: Qkv::Separate,
            transposed: false,
            fp8_block: None,
        }
    }
}

/// How query, key and value projections are stored. A unit is `head_dim` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qkv {
    /// As three matrices.
    Separate,
    /// All queries, then all keys, then all values (GPT-2, Falcon 7B).
    Joined,
    /// For each key/value head its queries, its key, its value (BLOOM, Falcon 40B).
    ByGroup,
}

impl Architecture {
    /// The attention of each layer that has one.
    pub(crate) fn attentions_mut(&mut self) -> impl Iterator<Item = &mut Attention> {
        self.layers
            .iter_mut()
            .filter_map(|layer| layer.mixer.as_mut())
            .map(|Mixer::Attention(attention)| attention)
    }

    /// Number of parameters, from the shapes, tied weights counted once; `u64::MAX` if there are more.
    #[must_use]
    pub fn n_parameters(&self) -> u64 {
        let hidden = self.hidden as u128;
        let embed = self.vocab as u128 * hidden;
        let positions = self.embedding.learned_positions.map_or(0, |rows| rows as u128 * hidden);
        let head = if self.head.tied { 0 } else { embed };
        let head_bias = if self.head.bias { self.vocab as u128 } else { 0 };
        let norms = self.final_norm.n_parameters(self.hidden)
            + self.embedding.norm.as_ref().map_or(0, |n| n.n_parameters(self.hidden));
        let n = embed
            + positions
            + head
            + head_bias
            + norms
            + self.layers.iter().map(|l| l.n_parameters(self.hidden)).sum::<u128>();
        u64::try_from(n).unwrap_or(u64::MAX)
    }
}

impl Layer {
    /// The layer's attention, if it has one.
    #[must_use]
    pub fn attention(&self) -> Option<&Attention> {
        match &self.mixer {
            Some(Mixer::Attention(attention)) => Some(attention),
            None => None,
        }
    }

    fn n_parameters(&self, hidden: usize) -> u128 {
        let norms = [&self.mixer_norm, &self.post_mixer_norm, &self.mlp_norm, &self.post_mlp_norm];
        let norms: u128 = norms.into_iter().flatten().map(|n| n.n_parameters(hidden)).sum();
        let mixer = self.attention().map_or(0, |attention| attention.n_parameters(hidden));
        norms + mixer + self.mlp.as_ref().map_or(0, |mlp| mlp.n_parameters(hidden))
    }
}

impl Norm {
    fn n_parameters(&self, width: usize) -> u128 {
        match self.kind {
            NormKind::Rms | NormKind::Layer { bias: false, .. } => width as u128,
            NormKind::Layer { bias: true, .. } => 2 * width as u128,
        }
    }
}

impl Attention {
    /// Width of all query heads together.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    fn n_parameters(&self, hidden: usize) -> u128 {
        let (q, kv, hidden) = (self.q_dim() as u128, self.kv_dim() as u128, hidden as u128);
        let biases =
            if self.qkv_bias { q + 2 * kv } else { 0 } + if self.o_bias { hidden } else { 0 };
        let norms = match &self.qk_norm {
            None => 0,
            Some(QkNorm::PerHead(n)) => 2 * n.n_parameters(self.head_dim),
            Some(QkNorm::FullWidth(n)) => {
                n.n_parameters(self.q_dim()) + n.n_parameters(self.kv_dim())
            }
        };
        hidden * (2 * q + 2 * kv) + biases + norms
    }
}

impl Mlp {
    fn n_parameters(&self, hidden: usize) -> u128 {
        let hidden = hidden as u128;
        match self {
            Self::Gated(d) => {
                3 * hidden * d.inner as u128 + if d.bias { 2 * d.inner as u128 + hidden } else { 0 }
            }
            Self::Plain(d) => {
                2 * hidden * d.inner as u128 + if d.bias { d.inner as u128 + hidden } else { 0 }
            }
            Self::Experts(e) => e.n_experts as u128 * hidden * (3 * e.inner as u128 + 1),
        }
    }
}
