//! The kernels for CPUs.

pub mod attention;
pub(crate) mod cache;
pub mod elementwise;
pub(crate) mod floats;
pub(crate) mod functions;
pub mod input;
#[cfg(target_arch = "x86_64")]
pub(crate) mod integers;
pub mod linear;
pub mod mamba;
pub(crate) mod math;
pub mod pack;
pub(crate) mod quantized;
pub(crate) mod shared;
pub(crate) mod simd;
mod tile;
