//! The operations on an NVIDIA GPU: our own kernels, launched through the driver that is opened at run time.
//!
//! Nothing of CUDA is linked: the same binary starts where there is no driver. Activations are f32, weights stay in
//! their format, the cache is made of pages. One stream does everything in order; the host waits only when it reads.
//! The launches of a token become a graph, which the driver starts in one call.

mod driver;
mod experts;
mod kv;
mod mamba;
mod operations;
mod selftest;
mod weight;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tramontane_kernels::cuda as kernels;
use tramontane_models::Architecture;
use tramontane_models::spec::{Mixer, Mlp};

use crate::error::{Error, ErrorKind, Result};
use crate::nn::graph::check_mixers;
use crate::ops::{Cpu, Format, KvFormat, NormWeight};

pub use driver::{DeviceInfo, devices, has_driver};
use driver::{Gpu, Memory};
pub use experts::CudaExperts;
pub use kv::CudaKv;
pub use mamba::CudaState;
pub use weight::CudaWeight;

/// Widest head that the kernels take.
const MAX_HEAD: usize = 256;

/// Bytes that are copied to measure bandwidth: far more than any cache holds.
const BANDWIDTH_BYTES: u64 = 1 << 30;

/// An NVIDIA GPU.
pub struct Cuda {
    gpu: Arc<Gpu>,
    /// Packs weights on their way to the GPU.
    host: Cpu,
    scratch: Mutex<Scratch>,
    /// Held while a step asks for its operations: those of one token then stand together, and are the same each time.
    turn: Mutex<()>,
}

/// Memory that operations use while they run; the stream's order lets the next one have it.
#[derive(Default)]
struct Scratch {
    /// Inputs rounded to the type of the weights.
    rounded: Option<Memory>,
    /// Attention over single chunks of the sequence.
    partial: Option<Memory>,
    ids: FromHost,
    rows: FromHost,
    factors: FromHost,
    /// Where the largest of many values are found.
    largest: Option<Memory>,
    experts: experts::Scratch,
    /// ALiBi slopes that were seen, and where they are.
    slopes: Vec<(Vec<f32>, Memory)>,
}

/// What the host sent last, and where it is.
#[derive(Default)]
struct FromHost {
    bytes: Vec<u8>,
    memory: Option<Memory>,
}

/// The memory in `slot`, made larger where it has less than `bytes`.
fn at_least<'a>(gpu: &Arc<Gpu>, slot: &'a mut Option<Memory>, bytes: usize) -> Result<&'a Memory> {
    match slot.take() {
        Some(memory) if memory.bytes() >= bytes => Ok(slot.insert(memory)),
        _ => Ok(slot.insert(gpu.alloc(bytes)?)),
    }
}

impl Cuda {
    /// Opens device `number`, or the first one that the kernels run on.
    ///
    /// # Errors
    ///
    /// If there is no driver or no such device, or its kernels do not compute what the CPU computes.
    pub fn new(number: Option<usize>) -> Result<Self> {
        let (_, devices) = devices()?;
        let usable = |d: &&DeviceInfo| d.capability >= kernels::MIN_CAPABILITY;
        let found = match number {
            Some(n) => devices.get(n),
            None => devices.iter().find(usable).or(devices.first()),
        };
        let Some(info) = found else {
            let what = match number {
                Some(n) => {
                    format!("there is no CUDA device {n}: the driver lists {}", devices.len())
                }
                None => "the NVIDIA driver lists no device".to_owned(),
            };
            return Err(Error::new(ErrorKind::Device, what));
        };
        let (gpu, host) = (Gpu::open(info.clone())?, Cpu::new(None)?);
        Ok(Self { gpu, host, scratch: Mutex::default(), turn: Mutex::default() })
    }

    /// `cuda:N` and the name of the device.
    #[must_use]
    pub fn name(&self) -> String {
        format!("cuda:{} ({})", self.gpu.info.number, self.gpu.info.name)
    }

    /// Free memory, bytes.
    ///
    /// # Errors
    ///
    /// If the driver does not tell.
    pub fn room(&self) -> Result<u64> {
        self.gpu.room()
    }

    /// Bytes per second that the device's memory reads and writes: the best of five copies.
    ///
    /// # Errors
    ///
    /// If the driver fails, or there is no room for the copies.
    pub fn bandwidth(&self) -> Result<f64> {
        let bytes = (self.room()? / 4).min(BANDWIDTH_BYTES) as usize;
        let (from, to) = (self.gpu.alloc(bytes)?, self.gpu.alloc(bytes)?);
        self.gpu.clear(&from)?;
        let mut best = 0f64;
        for _ in 0..5 {
            self.gpu.wait()?;
            let start = Instant::now();
            self.gpu.copy(&from, &to)?;
            self.gpu.wait()?;
            best = best.max(2.0 * bytes as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// Runs every operation on small inputs here and on the CPU, in the formats given, and compares.
    ///
    /// # Errors
    ///
    /// If the driver fails, or an operation gives something else than on the CPU; it is named.
    pub fn self_test(&self, format: Format, kv: KvFormat, heads: HeadShape) -> Result<()> {
        selftest::run(self, format, kv, heads)
    }

    /// The same for the layers of `architecture` that are not attention or plain MLPs: experts and Mamba-2, each in a small
    /// shape of the kind that the model has first.
    ///
    /// # Errors
    ///
    /// As [`Cuda::self_test`].
    pub fn self_test_layers(&self, format: Format, architecture: &Architecture) -> Result<()> {
        let experts = architecture.layers.iter().find_map(|layer| match layer.mlp.as_ref()? {
            Mlp::Experts(experts) => Some(experts),
            Mlp::Gated(_) | Mlp::Plain(_) => None,
        });
        let mamba = architecture.layers.iter().find_map(|layer| match layer.mixer.as_ref()? {
            Mixer::Mamba(shape) => Some(shape),
            Mixer::Attention(_) | Mixer::Latent(_) => None,
        });
        experts.map_or(Ok(()), |spec| selftest::families::experts(self, format, spec))?;
        mamba.map_or(Ok(()), |shape| selftest::families::mamba(self, shape))
    }

    /// Refuses a model that needs a kernel which does not exist.
    ///
    /// # Errors
    ///
    /// If a layer has a shape that the kernels do not take.
    pub fn check_supported(&self, architecture: &Architecture) -> Result<()> {
        check_mixers(self, architecture)?;
        match head_shapes(architecture).iter().find(|shape| shape.head_dim > MAX_HEAD) {
            Some(shape) => Err(too_wide(shape.head_dim)),
            None => Ok(()),
        }
    }

    /// Bytes that the operations use while `n` tokens pass, besides the buffers of the graph: those of experts.
    #[must_use]
    pub fn scratch_bytes(architecture: &Architecture, n: usize) -> u64 {
        let mlps = architecture.layers.iter().filter_map(|layer| layer.mlp.as_ref());
        let bytes = |mlp: &Mlp| match mlp {
            Mlp::Experts(spec) => experts::bytes(spec, n, architecture.hidden),
            Mlp::Gated(_) | Mlp::Plain(_) => 0,
        };
        mlps.map(bytes).max().unwrap_or(0) as u64
    }

    /// Where `slopes` are on the device.
    fn slopes(&self, scratch: &mut Scratch, slopes: &[f32]) -> Result<u64> {
        if let Some((_, memory)) = scratch.slopes.iter().find(|(known, _)| known == slopes) {
            return Ok(memory.address());
        }
        let memory = self.gpu.alloc(size_of_val(slopes))?;
        self.gpu.upload(slopes, &memory, 0)?;
        let address = memory.address();
        scratch.slopes.push((slopes.to_vec(), memory));
        Ok(address)
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends ids, rows or factors to the device, unless they are what `slot` holds already; good until something else is
    /// sent to it.
    fn to_device<T: bytemuck::NoUninit>(&self, slot: &mut FromHost, values: &[T]) -> Result<u64> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if let Some(memory) = slot.memory.as_ref().filter(|_| slot.bytes == bytes) {
            return Ok(memory.address());
        }
        slot.bytes.clear();
        let memory = at_least(&self.gpu, &mut slot.memory, bytes.len())?;
        self.gpu.upload(values, memory, 0)?;
        slot.bytes.extend_from_slice(bytes);
        Ok(memory.address())
    }

    /// The norm of `x`, to which `add` is added before, if given.
    fn norm_at(
        &self,
        norm: &NormWeight<CudaBuffer>,
        add: Option<&CudaBuffer>,
        x: &CudaBuffer,
        out: &CudaBuffer,
        n: usize,
    ) -> Result<()> {
        let n_elements = n * norm.width;
        let shortest = add.map_or(out.len, |add| add.len.min(out.len)).min(x.len);
        assert!(n_elements <= shortest, "norm past the end of a buffer");
        let weights = kernels::Norm {
            weight: norm.weight.at(),
            bias: norm.bias.as_ref().map_or(0, CudaBuffer::at),
            width: norm.width,
            eps: norm.eps,
            centred: norm.centred,
        };
        let add = add.map_or(0, CudaBuffer::at);
        self.gpu.launch(&kernels::norm(&weights, add, x.at(), out.at(), n))
    }
}

/// What decides which kernels attention uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeadShape {
    /// Elements of a query or key.
    pub head_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Query heads for each key/value head.
    pub group: usize,
}

/// The shapes of heads that occur in a model, each once.
pub(crate) fn head_shapes(architecture: &Architecture) -> BTreeSet<HeadShape> {
    let shape = |mixer: &Mixer| match mixer {
        Mixer::Attention(a) => {
            let (head_dim, group) = (a.head_dim, a.n_heads / a.n_kv_heads);
            Some(HeadShape { head_dim, v_dim: head_dim, group })
        }
        Mixer::Latent(l) => Some(HeadShape { head_dim: l.k_dim(), v_dim: l.v_dim, group: 1 }),
        Mixer::Mamba(_) => None,
    };
    let mixers = architecture.layers.iter().filter_map(|layer| layer.mixer.as_ref());
    mixers.filter_map(shape).collect()
}

fn too_wide(head_dim: usize) -> Error {
    Error::not_supported(format!(
        "heads have {head_dim} elements, the CUDA kernels take at most {MAX_HEAD}"
    ))
    .hint("--device cpu")
}

/// f32 on the device.
pub struct CudaBuffer {
    memory: Memory,
    len: usize,
}

impl CudaBuffer {
    fn at(&self) -> u64 {
        self.memory.address()
    }
}
