//! The machine under test: its name, its settings, and how fast it reads memory.

#[cfg(feature = "cuda")]
use tramontane::DeviceChoice;
use tramontane::error::Result;
use tramontane::ops::Cpu;
use tramontane::{Error, ModelInfo};

/// What bounds and describes a measurement.
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) governor: String,
    /// The GPU that computes, if one does.
    pub(super) gpu: Option<String>,
    /// Bytes per second of the memory that the weights are in: what all threads together read, or what a GPU reads
    /// and writes when it copies.
    pub(super) bandwidth: f64,
}

impl Machine {
    /// Describes this machine, and measures the memory of the device that `model` is on.
    pub(super) fn measure(model: &ModelInfo) -> Result<Self> {
        let gpu = model.device.starts_with("cuda").then(|| model.device.clone());
        let bandwidth = match gpu {
            Some(_) => of_gpu(&model.device)?,
            None => Cpu::new(Some(model.threads))?.bandwidth()?,
        };
        Ok(Self { cpu: cpu_name(), governor: governor(), gpu, bandwidth })
    }
}

/// The bandwidth of the GPU that reports call `device`.
#[cfg(feature = "cuda")]
fn of_gpu(device: &str) -> Result<f64> {
    let name = device.split(' ').next().unwrap_or_default();
    match name.parse() {
        Ok(DeviceChoice::Cuda(number)) => tramontane::ops::Cuda::new(number)?.bandwidth(),
        _ => Err(Error::bad_input(format!("`{device}` is not a GPU"))),
    }
}

#[cfg(not(feature = "cuda"))]
fn of_gpu(device: &str) -> Result<f64> {
    Err(Error::bad_input(format!("`{device}` is not a GPU")))
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn governor() -> String {
    let path = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    std::fs::read_to_string(path)
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The most memory that this process has used, in bytes, where the system tells.
pub(super) fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
