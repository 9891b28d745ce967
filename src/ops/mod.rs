//! The seam between the graph and the devices: every operation that the graph needs, with its shapes.
//!
//! The graph ([`crate::nn`]) is written once, over [`Ops`]; each device answers in its own file. Activations are
//! f32 on every device, row-major, one row per token: a buffer of `n` rows of `width` holds element `(t, i)` at
//! `t · width + i`. Buffers are allocated once per session and used again for every chunk.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod format;

use tramontane_models::spec::{self, Activation, Mixer, RopeStyle};

use crate::checkpoint::TensorData;
use crate::error::{Error, Result};

pub use cpu::{Cpu, CpuKv, CpuState};
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use format::{Format, KvFormat};

/// A norm's weights on a device.
#[derive(Debug)]
pub struct NormWeight<B> {
    /// `[width]`.
    pub weight: B,
    /// `[width]`; a LayerNorm's bias.
    pub bias: Option<B>,
    /// Length of a row.
    pub width: usize,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Whether the mean is subtracted (LayerNorm) or not (RMSNorm).
    pub centred: bool,
}

/// Shape of one layer's key/value storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Elements of a key head.
    pub k_dim: usize,
    /// Elements of a value head.
    pub v_dim: usize,
    /// Positions that attention looks back, the own one included; `None` for all.
    pub window: Option<usize>,
    /// Element format; [`KvFormat::Auto`] has been resolved by then.
    pub format: KvFormat,
}

/// What attention computes for one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AttendShape {
    /// Query heads; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Elements of a query or key head.
    pub k_dim: usize,
    /// Elements of a value head.
    pub v_dim: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Positions seen, the own one included; `None` for all.
    pub window: Option<usize>,
    /// Slope of each query head, where positions enter as a bias.
    pub alibi: Option<Vec<f32>>,
}

impl AttendShape {
    /// The shape of the cache that this attention reads, in `format`.
    #[must_use]
    pub fn kv_shape(&self, format: KvFormat) -> KvShape {
        let Self { n_kv_heads, k_dim, v_dim, window, .. } = *self;
        KvShape { n_kv_heads, k_dim, v_dim, window, format }
    }
}

/// Rotations of `n` tokens: which elements turn, and by which angles.
#[derive(Debug)]
pub struct Rotation<'a, B> {
    /// `[n, rotary_dim / 2]`.
    pub cos: &'a B,
    /// `[n, rotary_dim / 2]`.
    pub sin: &'a B,
    /// Elements of a head that turn.
    pub rotary_dim: usize,
    /// Which elements form a pair.
    pub style: RopeStyle,
}

/// Which elements of each head a rotation turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads in each row.
    pub n_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The first element of a head that turns.
    pub offset: usize,
}

/// Which blocks of elements are copied from one buffer to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Elements of a block.
    pub width: usize,
    /// Number of blocks written.
    pub count: usize,
    /// Each block read is written this many times in a row.
    pub repeat: usize,
    /// Where the blocks stand that are read.
    pub from: Stride,
    /// Where the blocks are written.
    pub to: Stride,
}

/// Where blocks stand in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// The first element of the first block.
    pub start: usize,
    /// Elements from the start of a block to that of the next.
    pub step: usize,
}

/// The weights of a Mamba-2 mixer but its projections; see [`spec::Mamba`] for the names of the sizes.
#[derive(Debug)]
pub struct MambaWeights<B> {
    /// The convolution, `[conv_width, conv_dim]`; the last row weighs the own position.
    pub conv: B,
    /// Its bias, `[conv_dim]`.
    pub conv_bias: Option<B>,
    /// The decay of each head, `[n_heads]`; negative.
    pub decay: B,
    /// How much of its input each head passes on, `[n_heads]`.
    pub skip: B,
    /// What is added to the time step of each head, `[n_heads]`.
    pub step: B,
    /// The gated norm, `[inner]`.
    pub norm: B,
}

/// What one layer remembers of a sequence in a memory of fixed size. A clone has its own memory.
pub trait Recurrent: Send + Clone {
    /// Forgets all tokens.
    fn clear(&mut self);
    /// Bytes of memory in use.
    fn bytes(&self) -> u64;
}

/// The experts of devices that run each by itself: there is no value of it.
#[derive(Debug, Clone, Copy)]
pub enum NoExperts {}

/// The keys and values of one layer and one sequence. A clone shares blocks until one of the two changes them.
pub trait Kv: Send + Clone {
    /// Makes room for the positions `start..end`, which will be stored next; [`Ops::store`] would do it too.
    fn reserve(&mut self, start: usize, end: usize) -> Result<()> {
        let _ = (start, end);
        Ok(())
    }
    /// Forgets every position from `len` on. `false` if positions before it that would still be
    /// seen are gone, because a window has moved on; nothing is changed then.
    fn truncate(&mut self, len: usize) -> bool;
    /// Forgets what no position from `len` on can see, where a window slides.
    fn forget_unseen(&mut self, len: usize);
    /// Bytes of memory in use.
    fn bytes(&self) -> u64;
}

/// The operations of a device.
pub trait Ops: Sized + Send + Sync + 'static {
    /// f32 activations on the device.
    type Buffer: Send + Sync;
    /// A weight matrix on the device.
    type Weight: Send + Sync;
    /// Keys and values of one layer and one sequence.
    type Kv: Kv;
    /// What a recurrent layer remembers of one sequence.
    type State: Recurrent;
    /// The experts of one layer that the device runs together; [`NoExperts`] where it runs each by itself.
    type Experts: Send + Sync;

    /// Tokens of a prompt that pass through the graph together: enough to read each weight seldom, few enough for small
    /// buffers.
    const CHUNK: usize;

    /// Runs `operations`, all that is done for the `n` tokens of a step. A device may start them together.
    fn step(&self, n: usize, operations: impl FnOnce() -> Result<()>) -> Result<()> {
        let _ = n;
        operations()
    }
    /// A buffer of `len` zeros.
    fn buffer(&self, len: usize) -> Result<Self::Buffer>;
    /// Number of elements that `buffer` has room for.
    fn room(&self, buffer: &Self::Buffer) -> usize;
    /// Copies `values` to the start of `buffer`.
    fn write(&self, values: &[f32], buffer: &mut Self::Buffer) -> Result<()>;
    /// Appends the first `len` elements to `out`.
    fn read(&self, buffer: &Self::Buffer, len: usize, out: &mut Vec<f32>) -> Result<()>;
    /// The `k` largest of the first `len` elements with their places, largest first, equal ones by place, any NaN before
    /// all. `None` where reading all of them costs less.
    fn largest(
        &self,
        buffer: &Self::Buffer,
        len: usize,
        k: usize,
    ) -> Result<Option<Vec<(u32, f32)>>> {
        let _ = (buffer, len, k);
        Ok(None)
    }
    /// Takes a matrix `[rows, cols]` of the checkpoint into the device's memory, in `format`.
    fn weight(&self, tensor: &TensorData, format: Format) -> Result<Self::Weight>;
    /// The same for a matrix of which only rows are looked up ([`Ops::embed`]), in the format in which it is stored.
    fn table(&self, tensor: &TensorData) -> Result<Self::Weight>;
    /// Takes a matrix `[rows, cols]` that was packed before.
    fn packed_weight(
        &self,
        tensor: &TensorData,
        format: Format,
        shape: [usize; 2],
    ) -> Result<Self::Weight> {
        let _ = (tensor, format, shape);
        Err(unavailable("with weights that were packed for the CPU"))
    }
    /// Whether [`Ops::packed_weight`] would take this matrix.
    fn check_packed(&self, tensor: &TensorData, format: Format, shape: [usize; 2]) -> Result<()> {
        self.packed_weight(tensor, format, shape).map(drop)
    }
    /// A matrix's bytes as [`Ops::packed_weight`] takes them, and their format; `None` where it is not packed.
    fn packed_bytes<'w>(&self, weight: &'w Self::Weight) -> Option<(Format, &'w [u8])> {
        let _ = weight;
        None
    }
    /// An empty key/value storage.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv>;

    /// Whether this device has the operations that `mixer` needs. A model with another mixer is refused before its
    /// weights are read.
    fn runs(&self, mixer: &Mixer) -> bool;

    /// The state of a Mamba-2 layer before the first token.
    fn state(&self, shape: &spec::Mamba) -> Result<Self::State>;

    /// `x[t] = table[ids[t]]`; `table` is `[vocab, hidden]`, `x` `[n, hidden]`.
    fn embed(&self, table: &Self::Weight, ids: &[u32], x: &mut Self::Buffer) -> Result<()>;
    /// `out[t] = norm(x[t])` over `n` rows of `norm.width`.
    fn norm(
        &self,
        norm: &NormWeight<Self::Buffer>,
        x: &Self::Buffer,
        n: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `x[t] += y[t]`, then `out[t] = norm(x[t])`, over `n` rows of `norm.width`.
    fn add_norm(
        &self,
        norm: &NormWeight<Self::Buffer>,
        y: &Self::Buffer,
        x: &mut Self::Buffer,
        n: usize,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        self.add(y, x, n * norm.width)?;
        self.norm(norm, x, n, out)
    }
    /// As [`Ops::norm`], in place.
    fn norm_in_place(
        &self,
        norm: &NormWeight<Self::Buffer>,
        x: &mut Self::Buffer,
        n: usize,
    ) -> Result<()>;
    /// `outs[i][t] = ws[i] · x[t]`; each of `ws` is `[rows, cols]`, `x` `[n, cols]`, `outs[i]` `[n, rows]`.
    ///
    /// Matrices that read the same input stand in one call, so that a device prepares the input once.
    fn linear(
        &self,
        ws: &[&Self::Weight],
        x: &Self::Buffer,
        n: usize,
        outs: &mut [&mut Self::Buffer],
    ) -> Result<()>;
    /// `out[t] = act(gate · x[t]) · (up · x[t])`; the matrices are `[rows, cols]`, `x` is `[n, cols]`, `out` and `spare`
    /// `[n, rows]`. What `spare` holds afterwards is not defined.
    #[allow(clippy::too_many_arguments, reason = "the first half of an MLP")]
    fn gated_linear(
        &self,
        act: Activation,
        [gate, up]: [&Self::Weight; 2],
        rows: usize,
        x: &Self::Buffer,
        n: usize,
        out: &mut Self::Buffer,
        spare: &mut Self::Buffer,
    ) -> Result<()> {
        self.linear(&[gate, up], x, n, &mut [out, spare])?;
        self.gate(act, spare, out, n * rows)
    }
    /// `x[t] += bias` over `n` rows of `width`.
    fn add_bias(
        &self,
        bias: &Self::Buffer,
        width: usize,
        x: &mut Self::Buffer,
        n: usize,
    ) -> Result<()>;
    /// `x[i] += y[i]` for `i < len`.
    fn add(&self, y: &Self::Buffer, x: &mut Self::Buffer, len: usize) -> Result<()>;
    /// `x[t] *= factors[t]` over `factors.len()` rows of `width`.
    fn scale_rows(&self, factors: &[f32], width: usize, x: &mut Self::Buffer) -> Result<()>;
    /// Turns the heads in each of the `n` rows of `x`, `[n, n_heads · head_dim]`.
    fn rotate(
        &self,
        rotation: &Rotation<'_, Self::Buffer>,
        heads: Heads,
        x: &mut Self::Buffer,
        n: usize,
    ) -> Result<()>;
    /// Turns queries and keys, which differ in the number of their heads: `q_heads` and `n_kv_heads`.
    fn rotate_both(
        &self,
        rotation: &Rotation<'_, Self::Buffer>,
        q_heads: Heads,
        q: &mut Self::Buffer,
        n_kv_heads: usize,
        k: &mut Self::Buffer,
        n: usize,
    ) -> Result<()> {
        self.rotate(rotation, q_heads, q, n)?;
        self.rotate(rotation, Heads { n_heads: n_kv_heads, ..q_heads }, k, n)
    }
    /// Stores keys `[n, n_kv_heads · k_dim]` and values `[n, n_kv_heads · v_dim]` of the positions from `start` on.
    fn store(
        &self,
        kv: &mut Self::Kv,
        k: &Self::Buffer,
        v: &Self::Buffer,
        n: usize,
        start: usize,
    ) -> Result<()>;
    /// Attention of `n` queries `[n, n_heads · k_dim]` at the positions from `start` on over what is stored; `out` is
    /// `[n, n_heads · v_dim]`.
    fn attend(
        &self,
        shape: &AttendShape,
        q: &Self::Buffer,
        n: usize,
        start: usize,
        kv: &Self::Kv,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `gate[i] = act(gate[i]) · up[i]` for `i < len`.
    fn gate(
        &self,
        act: Activation,
        up: &Self::Buffer,
        gate: &mut Self::Buffer,
        len: usize,
    ) -> Result<()>;
    /// `x[i] = act(x[i])` for `i < len`.
    fn activate(&self, act: Activation, x: &mut Self::Buffer, len: usize) -> Result<()>;
    /// `out[i] = x[rows[i]]`, rows of `width`.
    fn gather(
        &self,
        x: &Self::Buffer,
        width: usize,
        rows: &[usize],
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `x[rows[i]] += factors[i] · y[i]`, rows of `width`; no row is named twice.
    fn scatter_add(
        &self,
        y: &Self::Buffer,
        width: usize,
        rows: &[usize],
        factors: &[f32],
        x: &mut Self::Buffer,
    ) -> Result<()>;
    /// Prepares the experts of a layer for [`Ops::mix_experts`], or `None` where each must be run by itself. `correction`
    /// is `[n_experts]` or empty; `matrices` are for each expert gate (where there is one), up and down, and must live
    /// as long as what is returned.
    fn experts(
        &self,
        spec: &spec::Experts,
        correction: &[f32],
        matrices: &[Vec<&Self::Weight>],
    ) -> Result<Option<Self::Experts>> {
        let _ = (spec, correction, matrices);
        Ok(None)
    }
    /// Chooses experts for each of `n` tokens by the router's `outputs`, `[n, n_experts]`, and writes their results for
    /// `x`, weighted and summed in the order of the experts, to `out`; both are `[n, hidden]`.
    fn mix_experts(
        &self,
        experts: &Self::Experts,
        outputs: &Self::Buffer,
        x: &Self::Buffer,
        n: usize,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let _ = (experts, outputs, x, n, out);
        Err(unavailable("experts together"))
    }
    /// Copies blocks: the `i`-th block of `out` is block `i / repeat` of `x`. Latent attention needs it.
    fn copy_blocks(&self, blocks: &Blocks, x: &Self::Buffer, out: &mut Self::Buffer) -> Result<()> {
        let _ = (blocks, x, out);
        Err(unavailable("latent attention"))
    }
    /// What stands between the projections of a Mamba-2 mixer, for `n` tokens that follow those in `state`.
    ///
    /// `x` is `[n, in_dim]`: for each token the gate `[inner]`, the channels of the convolution `[conv_dim]` and the
    /// time step of each head `[n_heads]`; it may be overwritten. `out` is `[n, inner]`.
    fn mamba(
        &self,
        shape: &spec::Mamba,
        weights: &MambaWeights<Self::Buffer>,
        x: &mut Self::Buffer,
        n: usize,
        state: &mut Self::State,
        out: &mut Self::Buffer,
    ) -> Result<()>;
}

/// The error of an operation that a device does not have.
fn unavailable(what: &str) -> Error {
    Error::not_supported(format!("this device cannot compute {what} yet")).hint("--device cpu")
}
