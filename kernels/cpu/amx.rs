//! AMX: eight registers of 16 rows of 64 bytes, and instructions that multiply two of them.
//!
//! One instruction makes 16 × 16 sums over 32 columns of bf16 or 64 columns of bytes, in 16 cycles: eight times the products of
//! AVX-512. Measured on a Xeon: with what they are loaded from in the second-level cache, 80 % of that, and while they are in
//! use, only one multiply-add of AVX-512 for each cycle instead of two.
//!
//! The compiler has no names for what these registers hold, and does not touch them: so each function here is a block of assembly
//! between memory and registers. Sums are complete only 52 cycles after their last product was begun, and who stores them before
//! begins no others meanwhile; so they are left in the registers, and stored when the next ones need these.

#![cfg(target_arch = "x86_64")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;

use half::bf16;

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

/// Columns of a step in bf16.
pub(crate) const HALVES: usize = LINE / 2;

/// A step of 32 columns in bf16, `[token][column]`.
pub(crate) type Halves = [[bf16; 2]; TILE / 4];

/// A step of 64 columns in bytes, `[token][column]`.
pub(crate) type Bytes = [u8; TILE];

/// Weights of a step: `[4 bytes of columns][row][4]`.
pub(crate) type Weights = Content;

/// What a register holds, line by line.
pub(crate) type Content = Aligned<[[u8; LINE]; SIDE]>;

/// Sums of 16 tokens, `[token][row]`.
pub(crate) type Sums<T> = [[T; SIDE]; SIDE];

/// Four sums: those of 32 tokens with one tile of weights, and with the other.
pub(crate) type Four<'a, T> = [&'a mut [Sums<T>; 2]; 2];

/// Stores the four sums that are in the registers: before the first product, that is anything.
pub(crate) fn store<T>(_: &Tiles, to: Four<'_, T>) {
    // SAFETY: the registers are set up; they are written to whole arrays of numbers, which may hold any bytes.
    unsafe {
        asm!(
            "tilestored [{a} + {line}], tmm0",
            "tilestored [{b} + {line}], tmm1",
            "tilestored [{a} + {line} + 1024], tmm2",
            "tilestored [{b} + {line} + 1024], tmm3",
            a = in(reg) to[0].as_mut_ptr(),
            b = in(reg) to[1].as_mut_ptr(),
            line = in(reg) LINE,
            options(nostack, preserves_flags),
        );
    }
}

/// Two tiles of tokens times two of weights: `$product` adds to the four sums, after `$begin` has made room for each.
macro_rules! two_by_two {
    ($product:literal, [$($begin0:literal),*], [$($begin1:literal),*], [$($begin2:literal),*], [$($begin3:literal),*],
        $x:expr, $w:expr, $($operands:tt)*) => {
        asm!(
            "tileloadd tmm4, [{x0} + {line}]",
            "tileloadd tmm6, [{w} + {line}]",
            $($begin0,)*
            concat!($product, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{w} + {line} + 1024]",
            $($begin1,)*
            concat!($product, " tmm1, tmm4, tmm7"),
            "tileloadd tmm5, [{x1} + {line}]",
            $($begin2,)*
            concat!($product, " tmm2, tmm5, tmm6"),
            $($begin3,)*
            concat!($product, " tmm3, tmm5, tmm7"),
            x0 = in(reg) std::ptr::from_ref($x[0]),
            x1 = in(reg) std::ptr::from_ref($x[1]),
            w = in(reg) std::ptr::from_ref($w),
            line = in(reg) LINE,
            $($operands)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        )
    };
}

/// The first step of sums: each register is stored `$before` `$room` is made in it.
macro_rules! begin {
    ($product:literal, [$room0:literal, $room1:literal, $room2:literal, $room3:literal],
        $x:expr, $w:expr, $before:expr, $($operands:tt)*) => {
        two_by_two!(
            $product,
            ["tilestored [{b0} + {line}], tmm0", $room0],
            ["tilestored [{b1} + {line}], tmm1", $room1],
            ["tilestored [{b0} + {line} + 1024], tmm2", $room2],
            ["tilestored [{b1} + {line} + 1024], tmm3", $room3],
            $x, $w,
            b0 = in(reg) $before[0].as_mut_ptr(),
            b1 = in(reg) $before[1].as_mut_ptr(),
            $($operands)*
        )
    };
}

/// The first step of sums in bf16, which go on from what stands in `sums`; what is in the registers is stored in `before`.
///
/// In a step, the first and the second columns of the pairs have sums of their own, of which each is rounded after each product;
/// then their sum is added to what there was. Subnormal numbers are zeros.
#[inline(always)]
pub(crate) fn begin_bf16(
    _: &Tiles,
    x: [&Halves; 2],
    w: &[Weights; 2],
    sums: &Four<'_, f32>,
    before: Four<'_, f32>,
) {
    // SAFETY: the registers are set up; they are read from and written to whole arrays.
    unsafe {
        begin!(
            "tdpbf16ps",
            [
                "tileloadd tmm0, [{s0} + {line}]",
                "tileloadd tmm1, [{s1} + {line}]",
                "tileloadd tmm2, [{s0} + {line} + 1024]",
                "tileloadd tmm3, [{s1} + {line} + 1024]"
            ],
            x, w, before,
            s0 = in(reg) sums[0].as_ptr(),
            s1 = in(reg) sums[1].as_ptr(),
        );
    }
}

/// Adds another step in bf16.
#[inline(always)]
pub(crate) fn add_bf16(_: &Tiles, x: [&Halves; 2], w: &[Weights; 2]) {
    // SAFETY: as above.
    unsafe { two_by_two!("tdpbf16ps", [], [], [], [], x, w,) }
}

/// The first step of exact sums of signed bytes, from zero; what is in the registers is stored in `before`.
#[inline(always)]
pub(crate) fn begin_bytes(_: &Tiles, x: [&Bytes; 2], w: &[Weights; 2], before: Four<'_, i32>) {
    // SAFETY: as above.
    unsafe {
        begin!(
            "tdpbssd",
            ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
            x,
            w,
            before,
        );
    }
}

/// Adds another step of bytes.
#[inline(always)]
pub(crate) fn add_bytes(_: &Tiles, x: [&Bytes; 2], w: &[Weights; 2]) {
    // SAFETY: as above.
    unsafe { two_by_two!("tdpbssd", [], [], [], [], x, w,) }
}

/// Which two of the four sums: while two are on their way, the others are stored.
#[derive(Clone, Copy)]
pub(crate) enum Half {
    First,
    Second,
}

impl Half {
    /// The one whose turn it is in a step.
    pub(crate) fn of(step: usize) -> Self {
        if step.is_multiple_of(2) { Self::First } else { Self::Second }
    }
}

/// A step of 16 tokens in bytes as sums of their own, exactly; those that were in these registers are stored in `before`.
#[inline(always)]
pub(crate) fn multiply_bytes(
    _: &Tiles,
    half: Half,
    x: &Bytes,
    w: &[Weights; 2],
    before: &mut [Sums<i32>; 2],
) {
    macro_rules! multiply {
        ($a:literal, $b:literal) => {
            asm!(
                "tileloadd tmm4, [{x} + {line}]",
                "tileloadd tmm6, [{w} + {line}]",
                concat!("tilestored [{before} + {line}], ", $a),
                concat!("tilezero ", $a),
                concat!("tdpbssd ", $a, ", tmm4, tmm6"),
                "tileloadd tmm7, [{w} + {line} + 1024]",
                concat!("tilestored [{before} + {line} + 1024], ", $b),
                concat!("tilezero ", $b),
                concat!("tdpbssd ", $b, ", tmm4, tmm7"),
                x = in(reg) x,
                w = in(reg) w,
                before = in(reg) before,
                line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            )
        };
    }
    // SAFETY: as above.
    unsafe {
        match half {
            Half::First => multiply!("tmm0", "tmm1"),
            Half::Second => multiply!("tmm2", "tmm3"),
        }
    }
}

/// Stores what is in these registers.
pub(crate) fn store_half(_: &Tiles, half: Half, to: &mut [Sums<i32>; 2]) {
    macro_rules! store {
        ($a:literal, $b:literal) => {
            asm!(
                concat!("tilestored [{to} + {line}], ", $a),
                concat!("tilestored [{to} + {line} + 1024], ", $b),
                to = in(reg) to,
                line = in(reg) LINE,
                options(nostack, preserves_flags),
            )
        };
    }
    // SAFETY: as above.
    unsafe {
        match half {
            Half::First => store!("tmm0", "tmm1"),
            Half::Second => store!("tmm2", "tmm3"),
        }
    }
}
