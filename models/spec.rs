//! The vocabulary in which a model is described: what the graph must compute, and how the checkpoint stores it.
//!
//! A description is per layer, so alternating windows, layers without position, dense layers followed by
//! experts, and hybrids cost nothing. Widths are in elements, `n_` means a count.

use crate::names::Names;

mod count;
mod mlp;

pub use mlp::{Activation, Dense, Experts, Groups, Mlp, Router, Scores};

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
    /// Softmax attention whose keys and values come from a narrow latent vector.
    Latent(Latent),
    /// A recurrence over a state of fixed size.
    Mamba(Mamba),
}

/// Latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1): keys and values of all heads are made from one
/// narrow vector per position, and one rotated key part is shared by all heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// Heads of queries, keys and values.
    pub n_heads: usize,
    /// Width of the latent that queries are made from; `None`: from the residual stream.
    pub q_rank: Option<usize>,
    /// Width of the latent that keys and values are made from.
    pub kv_rank: usize,
    /// Elements of a query or key head that carry no position.
    pub nope_dim: usize,
    /// Width of a value head.
    pub v_dim: usize,
    /// The rotation of the elements behind those without position; its `rotary_dim` is their number.
    pub rope: Rope,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Biases of the projections from and to the residual stream.
    pub bias: bool,
    /// The norm of the latents.
    pub norm: Norm,
    /// Queries are scaled by their position.
    pub query_scale: Option<QueryScale>,
}

/// Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): a short convolution, then for each head a matrix state that decays
/// and takes in one outer product per token.
#[derive(Debug, Clone, PartialEq)]
pub struct Mamba {
    /// Heads.
    pub n_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Groups of heads that share what writes to and reads from the state; divides `n_heads`.
    pub n_groups: usize,
    /// Columns of a head's state.
    pub state_dim: usize,
    /// Positions that the convolution sees, the own one included.
    pub conv_width: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the projections have biases.
    pub bias: bool,
    /// Time steps are at least this.
    pub step_min: f32,
    /// Time steps are at most this; may be infinite.
    pub step_max: f32,
    /// Added to the mean square of each group of the gated norm.
    pub eps: f32,
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
    /// Layers behind the last one that only guess further tokens (multi-token prediction): never used.
    pub extra_layers: usize,
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
            extra_layers: 0,
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
        self.layers.iter_mut().filter_map(|layer| layer.mixer.as_mut()).filter_map(|mixer| {
            match mixer {
                Mixer::Attention(attention) => Some(attention),
                Mixer::Latent(_) | Mixer::Mamba(_) => None,
            }
        })
    }
}

impl Layer {
    /// The layer's attention, if it has one.
    #[must_use]
    pub fn attention(&self) -> Option<&Attention> {
        match &self.mixer {
            Some(Mixer::Attention(attention)) => Some(attention),
            Some(Mixer::Latent(_) | Mixer::Mamba(_)) | None => None,
        }
    }

    /// The rotation of the layer's queries and keys, if they turn.
    #[must_use]
    pub fn rope(&self) -> Option<&Rope> {
        match self.mixer.as_ref()? {
            Mixer::Attention(attention) => match &attention.position {
                Position::Rope(rope) => Some(rope),
                Position::None | Position::Alibi { .. } => None,
            },
            Mixer::Latent(latent) => Some(&latent.rope),
            Mixer::Mamba(_) => None,
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
}

impl Latent {
    /// Width of a query or key head.
    #[must_use]
    pub fn k_dim(&self) -> usize {
        self.nope_dim + self.rope.rotary_dim
    }
}

impl Mamba {
    /// Width of all heads together.
    #[must_use]
    pub fn inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Channels of the convolution: what enters the heads, then for each group what writes to its states, then
    /// what reads from them.
    #[must_use]
    pub fn conv_dim(&self) -> usize {
        self.inner() + 2 * self.n_groups * self.state_dim
    }

    /// Width of the input projection: gate, channels of the convolution, time steps.
    #[must_use]
    pub fn in_dim(&self) -> usize {
        self.inner() + self.conv_dim() + self.n_heads
    }
}
