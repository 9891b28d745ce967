//! The arithmetic of tramontane: kernels on plain slices. This crate knows no models and no tensors.
//!
//! - [`Isa`]: which instructions may be used, decided once at run time;
//! - [`Pool`]: the threads that share the work of one kernel;
//! - [`formats`]: how weights lie in memory;
//! - [`cpu`]: the kernels;
//! - [`cuda`]: the kernels for NVIDIA GPUs, and how they are launched;
//! - [`reference`](mod@reference): the same in plain loops, the definition of right;
//! - [`bandwidth`]: how fast the machine reads memory, the ceiling of a decoded token;
//! - [`cases`]: the shapes and tolerances with which every kernel is tested and timed.
//!
//! **Determinism.** For one instruction set, a result has the same bits for any number of threads: work is split by
//! rows, heads and tokens, and no sum is ever split between threads. Nor does it matter how a prompt is cut; with AMX, if
//! it is cut at multiples of [`cpu::attention::TILED`] tokens.

pub mod bandwidth;
pub mod cases;
pub mod cpu;
pub mod cuda;
pub mod formats;
mod isa;
pub mod memory;
pub mod packed;
mod platform;
pub mod reference;
mod threads;

pub use isa::{ISA_VARIABLE, Isa};
pub use platform::default_threads;
pub use threads::Pool;
