//! The kernels for CPUs.

pub(crate) mod ahead;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bfloats512;
pub(crate) mod cache;
pub mod elementwise;
pub(crate) mod floats;
pub(crate) mod functions;
pub mod input;
#[cfg(target_arch = "x86_64")]
pub(crate) mod integers;
#[cfg(target_arch = "x86_64")]
pub(crate) mod integers512;
pub mod linear;
#[cfg(target_arch = "x86_64")]
pub(crate) mod linear_amx;
pub mod mamba;
pub(crate) mod math;
mod outputs;
pub mod pack;
#[cfg(target_arch = "x86_64")]
mod parts_amx;
mod prepare;
pub(crate) mod quantized;
pub(crate) mod rows;
pub(crate) mod shared;
pub(crate) mod simd;
mod tile;
mod tile_bytes;
mod tile_floats;
#[cfg(target_arch = "x86_64")]
mod weigh_amx;
#[cfg(target_arch = "x86_64")]
mod whole_tiles;
#[cfg(target_arch = "x86_64")]
mod widen_amx;
#[cfg(target_arch = "x86_64")]
mod widen_kv;
