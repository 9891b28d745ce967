//! Asking for weights before a single token reads them.
//!
//! While a core computes with what it has, it looks only so far ahead, and Intel's no further than the end of a page of 4 KiB. With
//! weights that are asked for one KiB before they are read, two cores of a Xeon with AMX read q4 at 28 GB/s instead of 21 to 24, q8 at 29
//! instead of 25, bf16 at 30 instead of 24, where 31 can be had; two of Zen 3 read q4 at 27 instead of 22, q8 at 33 instead of 26, and bf16,
//! which has the least to compute, as before. A line is asked for with each that is read: many at once gave half of that. Half or twice the
//! distance is nearly as good, eight times is no better or worse than nothing. On Zen 4, with AVX-512, it made things worse wherever it
//! was tried, so there it is left to the core.

use std::sync::OnceLock;

use crate::memory::ALIGN;

/// How far ahead, in bytes.
const DISTANCE: usize = 1024;

/// Whether weights should be asked for on this CPU.
pub(crate) fn pays() -> bool {
    static PAYS: OnceLock<bool> = OnceLock::new();
    *PAYS.get_or_init(measured)
}

/// Everywhere but on Zen 4 and its successors.
#[cfg(target_arch = "x86_64")]
fn measured() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    let amd = name.as_flattened() == b"AuthenticAMD";
    !(amd && std::arch::is_x86_feature_detected!("avx512f"))
}

/// On other CPUs [`prefetch`] does nothing.
#[cfg(not(target_arch = "x86_64"))]
fn measured() -> bool {
    false
}

/// Asks for as much as `now` holds, from [`DISTANCE`] behind its start on.
#[inline(always)]
pub(crate) fn ask<T>(now: &T) {
    for at in (0..size_of::<T>()).step_by(ALIGN) {
        prefetch(std::ptr::from_ref(now).cast(), DISTANCE + at);
    }
}

/// Asks for the cache line `at` bytes behind `start`, wherever that is.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch(start: *const u8, at: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch of any address is allowed.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at).cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn prefetch(_start: *const u8, _at: usize) {}

/// As [`prefetch`], no nearer than the second-level cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_far(start: *const u8, at: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch of any address is allowed.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
}
