//! The device as Rust sees it: memory, modules, launches. Tests of kernels use this; [`crate::api`] puts the
//! driver's C interface on top.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::block::{Launch, Worker};
use crate::decode::{Kernel, decode};
use crate::fault::Fault;
use crate::memory::Memory;
use crate::parse::{ParseError, parse};

/// Reads the text of a PTX module into kernels.
///
/// # Errors
///
/// Names the line that holds something this interpreter does not know.
pub fn load_module(ptx: &str) -> Result<Vec<Kernel>, ParseError> {
    parse(ptx)?.into_iter().map(decode).collect()
}

/// Why a launch did not run to its end.
#[derive(Debug)]
pub enum LaunchError {
    /// The shape or the parameters make no sense: what is wrong with them.
    Invalid(String),
    /// The kernel did something wrong.
    Fault(Box<Fault>),
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(what) => f.write_str(what),
            Self::Fault(fault) => write!(f, "{fault}"),
        }
    }
}

impl std::error::Error for LaunchError {}

/// Shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Threads of a block in each direction.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// Most bytes of shared memory for a block, as on sm_86 and sm_89, the smallest that we support.
pub const MAX_SHARED: u32 = 99 * 1024;

/// An emulated device.
#[derive(Debug)]
pub struct Device {
    memory: Mutex<Memory>,
    launches: AtomicU32,
    steps: AtomicU64,
}

impl Device {
    /// A device with `total` bytes of memory.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self {
            memory: Mutex::new(Memory::new(total)),
            launches: AtomicU32::new(0),
            steps: AtomicU64::new(0),
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Allocates `len` bytes of uninitialised memory; `None` when there is no room.
    pub fn alloc(&self, len: usize) -> Option<u64> {
        self.memory().alloc(len)
    }

    /// Frees an allocation; false if there is none at `address`.
    pub fn free(&self, address: u64) -> bool {
        self.memory().free(address)
    }

    /// Copies to the device; false if the range is not inside one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        self.memory().write(address, bytes)
    }

    /// Copies from the device; false if the range is not inside one allocation.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.memory().read(address, bytes)
    }

    /// Whether every byte of the range has been written.
    pub fn initialised(&self, address: u64, len: usize) -> bool {
        self.memory().initialised(address, len)
    }

    /// Free and total memory, bytes.
    pub fn room(&self) -> (usize, usize) {
        let m = self.memory();
        (m.total - m.used, m.total)
    }

    /// Instructions executed so far by all warps.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Runs a kernel to its end. `params` is the parameter buffer in the layout of [`Kernel::params`].
    ///
    /// # Errors
    ///
    /// When the shape is not allowed, or the kernel makes a mistake: the first in the order of blocks that
    /// this run saw.
    pub fn launch(&self, kernel: &Kernel, shape: Shape, params: &[u8]) -> Result<(), LaunchError> {
        check_shape(kernel, shape, params)?;
        let seq = self.launches.fetch_add(1, Ordering::Relaxed);
        let snapshot = self.memory().snapshot(seq);
        let launch = Launch {
            kernel,
            params,
            grid: shape.grid,
            block: shape.block,
            shared: (kernel.shared_bytes + shape.shared) as usize,
            memory: &snapshot,
        };
        let blocks: u64 = shape.grid.iter().map(|&n| u64::from(n)).product();
        let next = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let fault: Mutex<Option<(u64, Box<Fault>)>> = Mutex::new(None);
        let work = || {
            let mut worker = Worker::new(&launch);
            while !failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= blocks {
                    break;
                }
                if let Err(f) = worker.run(index) {
                    failed.store(true, Ordering::Relaxed);
                    let mut first = fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(i, _)| index < *i) {
                        *first = Some((index, f));
                    }
                }
            }
            self.steps.fetch_add(worker.steps, Ordering::Relaxed);
        };
        let helpers = helpers(blocks, kernel);
        if helpers == 0 {
            work();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..helpers {
                    scope.spawn(work);
                }
                work();
            });
        }
        match fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((_, fault)) => Err(LaunchError::Fault(fault)),
            None => Ok(()),
        }
    }
}

/// Host threads that help with a launch: none where the work is too small to be worth waking one.
fn helpers(blocks: u64, kernel: &Kernel) -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    if blocks * (kernel.code.len() as u64) < 4096 { 0 } else { (cores - 1).min(blocks - 1) }
}

fn check_shape(kernel: &Kernel, shape: Shape, params: &[u8]) -> Result<(), LaunchError> {
    let invalid =
        |what: String| Err(LaunchError::Invalid(format!("kernel {}: {what}", kernel.name)));
    let threads: u64 = shape.block.iter().map(|&n| u64::from(n)).product();
    let most = u64::from(kernel.max_threads.unwrap_or(1024));
    if threads == 0 || threads > most {
        return invalid(format!("{threads} threads in a block, at most {most}"));
    }
    let [x, y, z] = shape.grid;
    if x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535 {
        return invalid(format!("a grid of {x}x{y}x{z} blocks"));
    }
    let shared = kernel.shared_bytes + shape.shared;
    if shared > MAX_SHARED {
        return invalid(format!("{shared} bytes of shared memory, at most {MAX_SHARED}"));
    }
    let want = kernel.params.last().map_or(0, |p| p.offset + p.size);
    if params.len() < want {
        return invalid(format!("{} bytes of parameters, expected {want}", params.len()));
    }
    Ok(())
}
