//! The kernels for CPUs.

pub mod attention;
pub mod elementwise;
pub(crate) mod math;
pub mod matmul;
pub(crate) mod shared;
pub(crate) mod simd;
