//! A CUDA driver without a GPU, for tests.
//!
//! It interprets the PTX that ships with tramontane: warps run in lock step with divergence, and every
//! access is checked: bounds and alignment against live allocations, reads of memory that nobody wrote,
//! races in shared memory between barriers and between blocks of a launch, use of data whose asynchronous
//! copy was not waited for, warp-wide instructions and barriers that not all threads reach.
//!
//! Two doors lead in: [`Device`] for tests of single kernels, and the C interface of the driver ([`api`]) in
//! the shared library, which the real program opens as `libcuda.so.1`. The library answers "no device" unless
//! `TRAMONTANE_EMULATED_CUDA` is set, so it can never be taken for a GPU by accident.
//!
//! What it cannot tell: speed, and the rounding of tensor cores to the last bit.

mod alu;
pub mod api;
mod block;
mod compute;
mod control;
mod decode;
mod device;
mod fault;
mod memory;
mod op;
mod parse;
mod settings;
mod shared;
mod tensor;
mod warp;

pub use decode::Kernel;
pub use device::{Device, LaunchError, MAX_SHARED, Shape, load_module};
pub use fault::{Fault, FaultKind};
pub use parse::{Param, ParseError};
pub use settings::Settings;
