//! AMX: eight registers of 16 rows of 64 bytes, and instructions that multiply two of them.
//!
//! One instruction makes 16 × 16 sums over 32 columns of bf16 or 64 columns of bytes, in 16 cycles: eight times the products of
//! AVX-512. Measured on a Xeon: with what they are loaded from in the second-level cache, 80 % of that, and while they are in
//! use, only one multiply-add of AVX-512 for each cycle instead of two.
//!
//! The compiler has no names for what these registers hold, so each function here is a block of assembly that begins and
//! ends with memory.

#![cfg(target_arch = "x86_64")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;

use half::bf16;

use super::input::TILED_TOKENS;
pub(crate) use super::input::{TILE_LINE as LINE, TILE_SIDE as SIDE};
use crate::memory::Aligned;

/// Bytes of a register.
pub(crate) const TILE: usize = SIDE * LINE;

/// Proof that the CPU has AMX for bf16 and bytes (Intel's servers since 2023), and that the system saves its registers: only
/// [`Amx::detect`] makes one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amx(());

impl Amx {
    pub(crate) fn detect() -> Option<Self> {
        /// AMX-BF16, AMX-TILE and AMX-INT8.
        const ALL: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        let has = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & ALL == ALL;
        (has && permitted()).then_some(Self(()))
    }
}

/// Asks the system to save these registers with the others of this process; it is not done unasked.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    // `ARCH_REQ_XCOMP_PERM`, and the number of the registers' contents in it.
    const ASK: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers, and changes nothing but what is asked for.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ASK, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The registers of this thread, all of them 16 rows of 64 bytes. They are given back at the end, so that the system has no
/// more to save than before.
pub(crate) struct Tiles(PhantomData<*mut ()>);

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    line: [u16; 16],
    lines: [u8; 16],
}

impl Tiles {
    pub(crate) fn new(_: Amx) -> Self {
        const SHAPES: Shapes = {
            let (mut line, mut lines) = ([0; 16], [0; 16]);
            let mut i = 0;
            while i < 8 {
                (line[i], lines[i]) = (LINE as u16, SIDE as u8);
                i += 1;
            }
            Shapes { palette: 1, start: 0, reserved: [0; 14], line, lines }
        };
        // SAFETY: an `Amx` exists only where there are such registers; nothing else in this process knows them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, preserves_flags)) };
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `new` has set them up.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}

/// Two tiles of tokens times two of weights for each step of columns. `$begin` fills the four registers of the sums, `$end`
/// stores them, with more operands.
macro_rules! two_by_two {
    ([$($begin:literal),*], $dot:literal, [$($end:literal),*], $x:expr, $w:expr, $($operands:tt)*) => {
        asm!(
            $($begin,)*
            "2:",
            "tileloadd tmm4, [{x0} + {line}]",
            "tileloadd tmm6, [{w} + {line}]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{w} + {line} + 1024]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "tileloadd tmm5, [{x1} + {line}]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {w}, 2048",
            "dec {count}",
            "jnz 2b",
            $($end,)*
            x0 = inout(reg) $x[0].as_ptr() => _,
            x1 = inout(reg) $x[1].as_ptr() => _,
            w = inout(reg) $w.as_ptr() => _,
            count = inout(reg) $w.len() => _,
            line = in(reg) LINE,
            $($operands)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Columns of a step in bf16.
pub(crate) const HALVES: usize = LINE / 2;

/// A step of 32 columns in bf16, `[token][column]`.
pub(crate) type Halves = [[bf16; 2]; TILE / 4];

/// A step of 64 columns in bytes, `[token][column]`.
pub(crate) type Bytes = [u8; TILE];

/// Weights of a step: `[4 bytes of columns][row][4]`.
pub(crate) type Weights = Aligned<[[u8; LINE]; SIDE]>;

/// Sums of 16 tokens, `[token][row]`.
pub(crate) type Sums<T> = [[T; SIDE]; SIDE];

/// `sums[w][x] += x · w`, step by step. In a step, the first and the second columns of the pairs have sums of their own, of
/// which each is rounded after each product; then their sum is added to what there was. Subnormal numbers are zeros.
pub(crate) fn add_bf16(
    _: &Tiles,
    x: [&[Halves]; 2],
    w: &[[Weights; 2]],
    sums: [&mut [Sums<f32>; 2]; 2],
) {
    assert!(!w.is_empty() && x.iter().all(|x| x.len() == w.len()), "steps of both sides");
    // SAFETY: the registers are set up; they are read from and written to whole arrays, as many as there are steps.
    unsafe {
        two_by_two!(
            [
                "tileloadd tmm0, [{s0} + {line}]",
                "tileloadd tmm1, [{s1} + {line}]",
                "tileloadd tmm2, [{s0} + {line} + 1024]",
                "tileloadd tmm3, [{s1} + {line} + 1024]"
            ],
            "tdpbf16ps",
            [
                "tilestored [{s0} + {line}], tmm0",
                "tilestored [{s1} + {line}], tmm1",
                "tilestored [{s0} + {line} + 1024], tmm2",
                "tilestored [{s1} + {line} + 1024], tmm3"
            ],
            x,
            w,
            s0 = in(reg) sums[0].as_mut_ptr(),
            s1 = in(reg) sums[1].as_mut_ptr(),
        );
    }
}

/// Sums of integers that are not yet part of the totals: `128 × sums[0] + sums[1]` of 32 tokens.
pub(crate) struct Pending<'a> {
    pub(crate) sums: &'a [[Sums<i32>; 2]; 2],
    pub(crate) scales: &'a [f32; TILED_TOKENS],
    pub(crate) totals: &'a mut [[f32; SIDE]; TILED_TOKENS],
}

/// `sums[w][x] = x · w`, exactly; both sides are signed. Meanwhile, `before.totals += before.sums × before.scales`: sums
/// are complete only long after their last product was begun, and who waits for them begins no others.
pub(crate) fn multiply_bytes(
    _: &Tiles,
    x: [&[Bytes]; 2],
    w: &[[Weights; 2]],
    sums: &mut [[Sums<i32>; 2]; 2],
    before: Pending<'_>,
) {
    assert!(!w.is_empty() && x.iter().all(|x| x.len() == w.len()), "steps of both sides");
    // SAFETY: as above; the rows of `before` are 32, and in each turn two of them are added.
    unsafe {
        two_by_two!(
            ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
            "tdpbssd",
            [
                "mov {count}, 16",
                "3:",
                "vpslld zmm0, [{sums}], 7",
                "vpslld zmm1, [{sums} + 64], 7",
                "vpaddd zmm0, zmm0, [{sums} + 2048]",
                "vpaddd zmm1, zmm1, [{sums} + 2112]",
                "vcvtdq2ps zmm0, zmm0",
                "vcvtdq2ps zmm1, zmm1",
                "vbroadcastss zmm2, [{scales}]",
                "vbroadcastss zmm3, [{scales} + 4]",
                "vfmadd213ps zmm0, zmm2, [{totals}]",
                "vfmadd213ps zmm1, zmm3, [{totals} + 64]",
                "vmovups [{totals}], zmm0",
                "vmovups [{totals} + 64], zmm1",
                "add {sums}, 128",
                "add {scales}, 8",
                "add {totals}, 128",
                "dec {count}",
                "jnz 3b",
                "tilestored [{to} + {line}], tmm0",
                "tilestored [{to} + {line} + 2048], tmm1",
                "tilestored [{to} + {line} + 1024], tmm2",
                "tilestored [{to} + {line} + 3072], tmm3"
            ],
            x,
            w,
            sums = inout(reg) before.sums.as_ptr() => _,
            scales = inout(reg) before.scales.as_ptr() => _,
            totals = inout(reg) before.totals.as_mut_ptr() => _,
            to = in(reg) sums.as_mut_ptr(),
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
        );
    }
}

/// `sums[step][w] = x[step] · w[step]`, exactly; both sides are signed.
pub(crate) fn multiply_steps(
    _: &Tiles,
    x: &[Bytes],
    w: &[[Weights; 2]],
    sums: &mut [[Sums<i32>; 2]],
) {
    assert!(!w.is_empty() && x.len() == w.len() && w.len() <= sums.len(), "steps of both sides");
    // SAFETY: as above.
    unsafe {
        asm!(
            "2:",
            "tileloadd tmm4, [{x} + {line}]",
            "tileloadd tmm6, [{w} + {line}]",
            "tilezero tmm0",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {line} + 1024]",
            "tilezero tmm1",
            "tdpbssd tmm1, tmm4, tmm7",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "add {x}, 1024",
            "add {w}, 2048",
            "add {sums}, 2048",
            "dec {steps}",
            "jnz 2b",
            x = inout(reg) x.as_ptr() => _,
            w = inout(reg) w.as_ptr() => _,
            steps = inout(reg) w.len() => _,
            sums = inout(reg) sums.as_mut_ptr() => _,
            line = in(reg) LINE,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
