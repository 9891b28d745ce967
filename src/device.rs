//! Which device runs a model, and what happens where the first choice cannot.
//!
//! With [`DeviceChoice::Auto`] a GPU is taken if there is one that fits the model and passes its self-test, else the
//! CPU; and if the GPU fails later, the CPU takes over and computes the sequence again. Each such turn leaves a note.
//! An explicit choice that cannot be had is an error.

#[cfg(feature = "cuda")]
mod cuda;

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tramontane_models::Architecture;

use crate::cache::Runtime;
use crate::checkpoint::Checkpoint;
#[cfg(not(feature = "cuda"))]
use crate::error::Error;
use crate::error::Result;
use crate::memory::Estimate;
use crate::model::{DEFAULT_CONTEXT, LoadOptions, Plan};
use crate::nn::graph::Graph;
#[cfg(feature = "cuda")]
use crate::ops::KvFormat;
use crate::ops::{Cpu, Format, Ops};

/// The device that computes, as the caller asks for it.
///
/// ```
/// use tramontane::DeviceChoice;
///
/// assert_eq!("cuda:1".parse(), Ok(DeviceChoice::Cuda(Some(1))));
/// assert_eq!(DeviceChoice::default(), DeviceChoice::Auto);
/// assert_eq!(DeviceChoice::Cuda(None).to_string(), "cuda");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// A GPU where one can be had, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number; `None` for the first that can be used.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |n: &str| n.parse().ok().map(|n| Self::Cuda(Some(n)));
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(None)),
            _ => text.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned())
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
        }
    }
}

/// Lines about devices that nobody has read yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    #[cfg(feature = "cuda")]
    fn add(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// The lines, which are forgotten here.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is needed to put a model on a device.
#[derive(Clone)]
pub(crate) struct Request {
    choice: DeviceChoice,
    threads: Option<usize>,
    architecture: Architecture,
    checkpoint: Checkpoint,
    /// The format that was asked for.
    format: Format,
    /// The same, or the one in which most weights are stored.
    #[cfg(feature = "cuda")]
    stored: Format,
    #[cfg(feature = "cuda")]
    kv: KvFormat,
    estimate: Estimate,
    /// What is needed in each format, for advice.
    estimates: Vec<(Format, Estimate)>,
}

impl Request {
    /// What `options` ask for the model that `plan` describes.
    pub(crate) fn new(plan: &Plan, options: &LoadOptions) -> Self {
        // Without an explicit context, room for a usual conversation is enough: the cache grows as it is used.
        let context = options.context.unwrap_or_else(|| plan.context().min(DEFAULT_CONTEXT));
        let estimate = |format| plan.estimate(format, options.kv, context);
        Self {
            choice: options.device,
            threads: options.threads,
            architecture: plan.architecture.clone(),
            checkpoint: plan.checkpoint.clone(),
            format: options.format,
            #[cfg(feature = "cuda")]
            stored: plan.format(options.format),
            #[cfg(feature = "cuda")]
            kv: plan.kv(options.kv, options.format),
            estimate: estimate(options.format),
            estimates: Format::ALL.iter().map(|format| (*format, estimate(*format))).collect(),
        }
    }
}

/// Where a model would run, found out without reading its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placement {
    /// The device, as reports call it.
    pub device: String,
    /// Threads that compute.
    pub threads: usize,
    /// Free memory of the device in bytes, if it can be told.
    pub free: Option<u64>,
    /// Why the CPU would compute where the caller left the choice.
    pub reason: Option<String>,
}

/// Finds the device on which the requested model would run. A GPU is opened for that, but not tested.
///
/// # Errors
///
/// If an explicit choice cannot be had.
pub(crate) fn place(request: &Request) -> Result<Placement> {
    match request.choice {
        DeviceChoice::Cpu => place_on_cpu(request, None),
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(number) => cuda::place(request, number),
        #[cfg(feature = "cuda")]
        DeviceChoice::Auto => {
            cuda::place(request, None).or_else(|e| place_on_cpu(request, Some(cuda::reason(&e))))
        }
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Auto => place_on_cpu(request, None),
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda(_) => Err(without_cuda()),
    }
}

fn place_on_cpu(request: &Request, reason: Option<String>) -> Result<Placement> {
    let cpu = Cpu::new(request.threads)?;
    let free = crate::memory::available();
    Ok(Placement { device: cpu.name(), threads: cpu.threads(), free, reason })
}

#[cfg(not(feature = "cuda"))]
fn without_cuda() -> Error {
    Error::new(crate::ErrorKind::Device, "this program was built without the feature `cuda`")
        .hint("--device cpu")
}

/// A model on a device.
pub(crate) struct Opened {
    pub(crate) runtime: Box<dyn Runtime>,
    /// The device, as reports call it.
    pub(crate) device: String,
    /// Why the CPU computes where the caller left the choice.
    pub(crate) reason: Option<String>,
    pub(crate) threads: usize,
    /// Tokens of a prompt that pass through the graph together.
    pub(crate) chunk: usize,
    pub(crate) notes: Notes,
}

impl Opened {
    fn new<D: Ops>(graph: Graph<D>, device: String, threads: usize) -> Self {
        let notes = Notes::default();
        Self { runtime: Box::new(graph), device, reason: None, threads, chunk: D::CHUNK, notes }
    }
}

/// Loads the model on the device that the request asks for.
///
/// # Errors
///
/// If the device cannot be had or has too little memory, or the model's tensors are not what it describes.
pub(crate) fn open(request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Opened> {
    match request.choice {
        DeviceChoice::Cpu => on_cpu(request, progress),
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(number) => cuda::open(request, number, progress),
        #[cfg(feature = "cuda")]
        DeviceChoice::Auto => cuda::open_or_cpu(request, progress),
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Auto => on_cpu(request, progress),
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda(_) => Err(without_cuda()),
    }
}

fn on_cpu(request: &Request, progress: &mut dyn FnMut(u64, u64)) -> Result<Opened> {
    let device = Cpu::new(request.threads)?;
    request.estimate.check(&request.estimates)?;
    let (name, threads) = (device.name(), device.threads());
    let (architecture, checkpoint) = (request.architecture.clone(), &request.checkpoint);
    let graph = Graph::load(device, architecture, checkpoint, request.format, progress)?;
    Ok(Opened::new(graph, name, threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [
            DeviceChoice::Auto,
            DeviceChoice::Cpu,
            DeviceChoice::Cuda(None),
            DeviceChoice::Cuda(Some(1)),
        ] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }
}
