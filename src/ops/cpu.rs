//! The operations on the CPU: plain vectors in, `tramontane_kernels` inside.
//!
//! Weights are packed at load, in memory with huge pages; embeddings that are only looked up stay where the checkpoint
//! mapped them; the cache is made of blocks.

mod kv;
mod state;
mod weight;

use std::sync::{Mutex, PoisonError};

use tramontane_kernels::bandwidth::read_bandwidth;
use tramontane_kernels::cpu::attention::{self, KvView};
use tramontane_kernels::cpu::elementwise as element;
use tramontane_kernels::cpu::input::Input;
use tramontane_kernels::cpu::linear::{Linear, gated_linear, linear};
use tramontane_kernels::cpu::mamba;
#[cfg(feature = "cuda")]
use tramontane_kernels::cpu::pack::unpack_rows;
use tramontane_kernels::memory::{Arena, Recycler};
use tramontane_kernels::packed::{Format as PackedFormat, Packed};
use tramontane_kernels::{Isa, Pool, default_threads};
use tramontane_models::spec::{self, Activation, Mixer, RopeStyle};

use crate::checkpoint::TensorData;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{
    AttendShape, Blocks, Format, Heads, KvShape, MambaWeights, NoExperts, NormWeight, Ops, Rotation,
};

pub use kv::CpuKv;
pub use state::CpuState;
pub(super) use state::kernel_mamba;
pub use weight::CpuWeight;
#[cfg(feature = "cuda")]
pub(crate) use weight::overflows_f16;

/// Matrices with the same input that are worked through together.
const MAX_LAYERS: usize = 3;

/// The CPU: its instructions and the threads that compute.
pub struct Cpu {
    isa: Isa,
    pool: Pool,
    /// Where packed weights lie.
    arena: Mutex<Arena>,
    /// Where keys and values lie.
    caches: Recycler,
    /// Prepared activations, kept for the next layer; as many as sessions have computed at once.
    inputs: Mutex<Vec<Input>>,
}

impl Cpu {
    /// The CPU with `threads` threads; `None` for the physical cores that this process may use.
    ///
    /// The environment variable `TRAMONTANE_ISA` forces an instruction set.
    ///
    /// # Errors
    ///
    /// If the forced instruction set is unknown or this machine does not have it.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let isa = Isa::from_env().map_err(Error::bad_input)?;
        Ok(Self::with_isa(isa, threads.unwrap_or_else(default_threads)))
    }

    /// A CPU to compare other devices with: slow, but it never rounds activations, whatever the weights' format.
    #[cfg(feature = "cuda")]
    pub(super) fn unrounded() -> Self {
        Self::with_isa(Isa::portable(), 1)
    }

    fn with_isa(isa: Isa, threads: usize) -> Self {
        Self {
            isa,
            pool: Pool::new(threads),
            arena: Mutex::default(),
            caches: Recycler::new(),
            inputs: Mutex::default(),
        }
    }

    /// Calls `f` with the activations `x` prepared for weights in `formats`.
    fn with_input(
        &self,
        x: &[f32],
        cols: usize,
        formats: &[PackedFormat],
        f: impl FnOnce(&Input) -> Result<()>,
    ) -> Result<()> {
        let inputs = || self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut input = inputs().pop().unwrap_or_default();
        input.set(self.isa, &self.pool, x, cols, formats);
        let result = f(&input);
        inputs().push(input);
        result
    }

    /// Up to [`MAX_LAYERS`] matrices with the same input, in one parallel region.
    fn layers(
        &self,
        input: &Input,
        ws: &[&CpuWeight],
        n: usize,
        outs: &mut [&mut Vec<f32>],
    ) -> Result<()> {
        fn layer<'a>(w: &'a CpuWeight, n: usize, out: &'a mut [f32]) -> Result<Linear<'a>> {
            let w = w.packed()?;
            Ok(Linear::new(w, &mut out[..n * w.rows()]))
        }
        match (ws, outs) {
            ([a], [x]) => linear(self.isa, &self.pool, input, &mut [layer(a, n, x)?]),
            ([a, b], [x, y]) => {
                linear(self.isa, &self.pool, input, &mut [layer(a, n, x)?, layer(b, n, y)?])
            }
            ([a, b, c], [x, y, z]) => {
                let mut layers = [layer(a, n, x)?, layer(b, n, y)?, layer(c, n, z)?];
                linear(self.isa, &self.pool, input, &mut layers);
            }
            _ => {}
        }
        Ok(())
    }

    /// A matrix in the panels of a quantised format, in memory of its own: on its way to another device.
    #[cfg(feature = "cuda")]
    pub(super) fn panels(&self, tensor: &TensorData, format: Format) -> Result<Packed> {
        let weight = CpuWeight::pack(self.isa, &self.pool, &Mutex::default(), tensor, format)?;
        weight.packed().cloned()
    }

    /// A matrix that was packed before.
    #[cfg(feature = "cuda")]
    pub(super) fn mapped(
        &self,
        tensor: &TensorData,
        format: Format,
        shape: [usize; 2],
    ) -> Result<Packed> {
        CpuWeight::mapped(tensor, format, shape)?.packed().cloned()
    }

    /// The values of a packed matrix, row after row.
    #[cfg(feature = "cuda")]
    pub(super) fn unpack(&self, packed: &Packed) -> Vec<f32> {
        let rows: Vec<u32> = (0..packed.rows() as u32).collect();
        let mut values = vec![0.0; packed.rows() * packed.cols()];
        unpack_rows(self.isa, &self.pool, packed, &rows, &mut values);
        values
    }

    /// `cpu` and its instruction set.
    #[must_use]
    pub fn name(&self) -> String {
        format!("cpu ({})", self.isa.name())
    }

    /// The instruction sets that this machine can run, the slowest first.
    #[must_use]
    pub fn instructions() -> Vec<&'static str> {
        Isa::available().into_iter().map(Isa::name).collect()
    }

    /// Bytes per second that all threads together read from memory: the ceiling of a decoded token.
    ///
    /// # Errors
    ///
    /// If there is no memory to read.
    pub fn bandwidth(&self) -> Result<f64> {
        read_bandwidth(&self.pool).map_err(|e| Error::new(ErrorKind::NoMemory, e.to_string()))
    }

    /// Threads that compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.n_threads()
    }
}

impl Ops for Cpu {
    type Buffer = Vec<f32>;
    type Weight = CpuWeight;
    type Kv = CpuKv;
    type State = CpuState;
    type Experts = NoExperts;

    /// AMX takes longer to meet a weight the first time than for each token after that: in chunks of 256, prompts of 512 take
    /// 1.2 times as long in q8 there, 1.05 times in bf16, and as long in q4; elsewhere it makes no difference.
    const CHUNK: usize = 512;

    fn buffer(&self, len: usize) -> Result<Vec<f32>> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).map_err(|e| no_memory(4 * len as u64, e))?;
        buffer.resize(len, 0.0);
        Ok(buffer)
    }

    fn room(&self, buffer: &Vec<f32>) -> usize {
        buffer.len()
    }

    fn write(&self, values: &[f32], buffer: &mut Vec<f32>) -> Result<()> {
        buffer[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&self, buffer: &Vec<f32>, len: usize, out: &mut Vec<f32>) -> Result<()> {
        out.extend_from_slice(&buffer[..len]);
        Ok(())
    }

    fn weight(&self, tensor: &TensorData, format: Format) -> Result<CpuWeight> {
        CpuWeight::pack(self.isa, &self.pool, &self.arena, tensor, format)
    }

    fn table(&self, tensor: &TensorData) -> Result<CpuWeight> {
        CpuWeight::table(tensor)
    }

    fn packed_weight(
        &self,
        tensor: &TensorData,
        format: Format,
        shape: [usize; 2],
    ) -> Result<CpuWeight> {
        CpuWeight::copied(&self.pool, &self.arena, tensor, format, shape)
    }

    fn check_packed(&self, tensor: &TensorData, format: Format, shape: [usize; 2]) -> Result<()> {
        CpuWeight::mapped(tensor, format, shape).map(drop)
    }

    fn packed_bytes<'w>(&self, weight: &'w CpuWeight) -> Option<(Format, &'w [u8])> {
        weight.packed().ok().map(|packed| (weight::format_of(packed), packed.bytes()))
    }

    fn kv(&self, shape: KvShape) -> Result<CpuKv> {
        Ok(CpuKv::new(shape, self.caches.clone()))
    }

    fn runs(&self, mixer: &Mixer) -> bool {
        match mixer {
            Mixer::Attention(_) | Mixer::Latent(_) | Mixer::Mamba(_) => true,
        }
    }

    fn state(&self, shape: &spec::Mamba) -> Result<CpuState> {
        let shape = kernel_mamba(shape);
        let (conv, heads) = (self.buffer(shape.conv_state())?, self.buffer(shape.head_state())?);
        Ok(CpuState { conv, heads })
    }

    fn embed(&self, table: &CpuWeight, ids: &[u32], x: &mut Vec<f32>) -> Result<()> {
        table.rows(self.isa, &self.pool, ids, x)
    }

    fn norm(
        &self,
        norm: &NormWeight<Vec<f32>>,
        x: &Vec<f32>,
        n: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let len = n * norm.width;
        let (x, out) = (&x[..len], &mut out[..len]);
        if norm.centred {
            element::layer_norm(
                self.isa,
                &self.pool,
                x,
                &norm.weight,
                norm.bias.as_deref(),
                norm.eps,
                out,
            );
        } else {
            element::rms_norm(self.isa, &self.pool, x, &norm.weight, norm.eps, out);
        }
        Ok(())
    }

    fn norm_in_place(&self, norm: &NormWeight<Vec<f32>>, x: &mut Vec<f32>, n: usize) -> Result<()> {
        let x = &mut x[..n * norm.width];
        if norm.centred {
            element::layer_norm_in_place(
                self.isa,
                &self.pool,
                x,
                &norm.weight,
                norm.bias.as_deref(),
                norm.eps,
            );
        } else {
            element::rms_norm_in_place(self.isa, &self.pool, x, &norm.weight, norm.eps);
        }
        Ok(())
    }

    fn linear(
        &self,
        ws: &[&CpuWeight],
        x: &Vec<f32>,
        n: usize,
        outs: &mut [&mut Vec<f32>],
    ) -> Result<()> {
        let Some(cols) = ws.first().map(|w| w.packed()).transpose()?.map(Packed::cols) else {
            return Ok(());
        };
        let mut formats = [PackedFormat::F32; MAX_LAYERS];
        for (format, w) in formats.iter_mut().zip(ws) {
            *format = w.packed()?.format();
        }
        let formats = &formats[..ws.len().min(MAX_LAYERS)];
        self.with_input(&x[..n * cols], cols, formats, |input| {
            for (ws, outs) in ws.chunks(MAX_LAYERS).zip(outs.chunks_mut(MAX_LAYERS)) {
                self.layers(input, ws, n, outs)?;
            }
            Ok(())
        })
    }

    fn gated_linear(
        &self,
        act: Activation,
        [gate, up]: [&CpuWeight; 2],
        rows: usize,
        x: &Vec<f32>,
        n: usize,
        out: &mut Vec<f32>,
        _: &mut Vec<f32>,
    ) -> Result<()> {
        let (gate, up, act) = (gate.packed()?, up.packed()?, kernel_activation(act));
        let (cols, formats) = (gate.cols(), [gate.format(), up.format()]);
        self.with_input(&x[..n * cols], cols, &formats, |input| {
            gated_linear(self.isa, &self.pool, input, act, gate, up, &mut out[..n * rows]);
            Ok(())
        })
    }

    fn add_bias(&self, bias: &Vec<f32>, width: usize, x: &mut Vec<f32>, n: usize) -> Result<()> {
        element::add_bias(self.isa, &self.pool, &mut x[..n * width], bias);
        Ok(())
    }

    fn add(&self, y: &Vec<f32>, x: &mut Vec<f32>, len: usize) -> Result<()> {
        element::add(self.isa, &self.pool, &mut x[..len], &y[..len]);
        Ok(())
    }

    fn scale_rows(&self, factors: &[f32], width: usize, x: &mut Vec<f32>) -> Result<()> {
        for (factor, row) in factors.iter().zip(x.chunks_exact_mut(width)) {
            element::scale(self.isa, &self.pool, row, *factor);
        }
        Ok(())
    }

    fn rotate(
        &self,
        rotation: &Rotation<'_, Vec<f32>>,
        heads: Heads,
        x: &mut Vec<f32>,
        n: usize,
    ) -> Result<()> {
        let Heads { n_heads, head_dim, offset } = heads;
        let rope = element::Rope {
            n_heads,
            head_dim,
            offset,
            rotary_dim: rotation.rotary_dim,
            style: match rotation.style {
                RopeStyle::Halves => element::RopeStyle::Halves,
                RopeStyle::Interleaved => element::RopeStyle::Interleaved,
            },
        };
        let angles = n * rotation.rotary_dim / 2;
        let (cos, sin) = (&rotation.cos[..angles], &rotation.sin[..angles]);
        element::rope(self.isa, &self.pool, &rope, cos, sin, &mut x[..n * n_heads * head_dim]);
        Ok(())
    }

    fn store(
        &self,
        kv: &mut CpuKv,
        k: &Vec<f32>,
        v: &Vec<f32>,
        n: usize,
        start: usize,
    ) -> Result<()> {
        kv.store(self.isa, &self.pool, k, v, n, start)
    }

    fn attend(
        &self,
        shape: &AttendShape,
        q: &Vec<f32>,
        n: usize,
        start: usize,
        kv: &CpuKv,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let attention = attention::Attention {
            n_heads: shape.n_heads,
            n_kv_heads: shape.n_kv_heads,
            k_dim: shape.k_dim,
            v_dim: shape.v_dim,
            scale: shape.scale,
            window: shape.window,
            softcap: None,
            alibi_slopes: shape.alibi.as_deref(),
        };
        let rows = n * shape.n_heads;
        let view = KvView { first: kv.first_position(), blocks: kv.blocks() };
        attention::attend(
            self.isa,
            &self.pool,
            &attention,
            &q[..rows * shape.k_dim],
            start,
            &view,
            &mut out[..rows * shape.v_dim],
        );
        Ok(())
    }

    fn gate(&self, act: Activation, up: &Vec<f32>, gate: &mut Vec<f32>, len: usize) -> Result<()> {
        element::gated(self.isa, &self.pool, kernel_activation(act), &mut gate[..len], &up[..len]);
        Ok(())
    }

    fn activate(&self, act: Activation, x: &mut Vec<f32>, len: usize) -> Result<()> {
        element::activate(self.isa, &self.pool, kernel_activation(act), &mut x[..len]);
        Ok(())
    }

    fn gather(&self, x: &Vec<f32>, width: usize, rows: &[usize], out: &mut Vec<f32>) -> Result<()> {
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
        Ok(())
    }

    fn scatter_add(
        &self,
        y: &Vec<f32>,
        width: usize,
        rows: &[usize],
        factors: &[f32],
        x: &mut Vec<f32>,
    ) -> Result<()> {
        for ((row, factor), y) in rows.iter().zip(factors).zip(y.chunks_exact(width)) {
            element::add_scaled(self.isa, &self.pool, &mut x[row * width..][..width], *factor, y);
        }
        Ok(())
    }

    fn copy_blocks(&self, blocks: &Blocks, x: &Vec<f32>, out: &mut Vec<f32>) -> Result<()> {
        let Blocks { width, count, repeat, from, to } = *blocks;
        for i in 0..count {
            let x = &x[from.start + i / repeat * from.step..][..width];
            out[to.start + i * to.step..][..width].copy_from_slice(x);
        }
        Ok(())
    }

    fn mamba(
        &self,
        shape: &spec::Mamba,
        weights: &MambaWeights<Vec<f32>>,
        x: &mut Vec<f32>,
        n: usize,
        state: &mut CpuState,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let weights = mamba::Weights {
            conv: &weights.conv,
            conv_bias: weights.conv_bias.as_deref(),
            decay: &weights.decay,
            skip: &weights.skip,
            step: &weights.step,
            norm: &weights.norm,
        };
        let state = mamba::State { conv: &mut state.conv, heads: &mut state.heads };
        let (x, out) = (&mut x[..n * shape.in_dim()], &mut out[..n * shape.inner()]);
        mamba::mamba(self.isa, &self.pool, &kernel_mamba(shape), &weights, x, state, out);
        Ok(())
    }
}

pub(super) fn kernel_activation(act: Activation) -> element::Activation {
    match act {
        Activation::Silu => element::Activation::Silu,
        Activation::Gelu => element::Activation::Gelu,
        Activation::GeluTanh => element::Activation::GeluTanh,
        Activation::Relu => element::Activation::Relu,
        Activation::Relu2 => element::Activation::ReluSquared,
    }
}

/// The error when `bytes` of memory cannot be had.
fn no_memory(bytes: u64, e: std::collections::TryReserveError) -> Error {
    Error::new(ErrorKind::NoMemory, format!("{bytes} bytes of memory cannot be had"))
        .hint("a smaller context (--ctx-size), format or model")
        .caused_by(e)
}
