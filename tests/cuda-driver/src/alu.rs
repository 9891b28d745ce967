//! Arithmetic of one lane: conversions, rounding, comparisons, byte permutes.

use crate::op::{BinF, Cmp, Int, MathF, Num, Round};

/// Extends the low bits of a word as its type says.
#[inline(always)]
pub(crate) fn extend(ty: Int, x: u32) -> u32 {
    match ty {
        Int::U8 => x & 0xFF,
        Int::S8 => x as u8 as i8 as i32 as u32,
        Int::U16 => x & 0xFFFF,
        Int::S16 => x as u16 as i16 as i32 as u32,
        Int::U32 | Int::S32 | Int::U64 | Int::S64 => x,
    }
}

/// Bits of a word that belong to its type.
#[inline(always)]
pub(crate) fn low_bits(ty: Int) -> u32 {
    match ty {
        Int::U8 | Int::S8 => 0xFF,
        Int::U16 | Int::S16 => 0xFFFF,
        Int::U32 | Int::S32 | Int::U64 | Int::S64 => u32::MAX,
    }
}

/// binary16 → f32, exactly.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u32) -> f32 {
    let sign = (h & 0x8000) << 16;
    let magnitude = (h & 0x7FFF) << 13;
    // The exponent bias differs by 112: let the multiplier shift it, which also normalises denormals.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23)).to_bits();
    let special = magnitude | 0x7F80_0000;
    f32::from_bits(sign | if magnitude >= 0x0F80_0000 { special } else { finite })
}

/// f32 → binary16, to nearest, ties to even.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u32 {
    let bits = x.to_bits();
    let (sign, bits) = (bits >> 16 & 0x8000, bits & 0x7FFF_FFFF);
    if bits > 0x7F80_0000 {
        return sign | 0x7FFF;
    }
    if bits >= 0x477F_F000 {
        return sign | 0x7C00;
    }
    if bits < 0x3880_0000 {
        // Denormal result: let an addition round at the right bit.
        let rounded = f32::from_bits(bits) + 0.5;
        return sign | (rounded.to_bits() - 0x3F00_0000);
    }
    let odd = bits >> 13 & 1;
    sign | (bits - (112 << 23) + 0xFFF + odd) >> 13
}

/// f32 → bfloat16, to nearest, ties to even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & 0x7FFF_FFFF > 0x7F80_0000 {
        return 0x7FFF;
    }
    (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
}

/// 2ˣ within two units in the last place, as the device promises.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let clamped = x.clamp(-151.0, 129.0);
    let whole = clamped.round_ties_even();
    let f = f64::from(clamped - whole) * std::f64::consts::LN_2;
    let p = 1.0
        + f * (1.0
            + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f / 720.0)))));
    let scale = f64::from_bits(((whole as i64 + 1023) as u64) << 52);
    let y = (p * scale) as f32;
    if x.is_nan() { x } else { y }
}

#[inline(always)]
pub(crate) fn math(op: MathF, x: f32) -> f32 {
    match op {
        MathF::Neg => -x,
        MathF::Abs => x.abs(),
        MathF::Ex2 => exp2(x),
        MathF::Lg2 => x.log2(),
        MathF::Rcp => 1.0 / x,
        MathF::Sqrt => x.sqrt(),
        MathF::Rsqrt => 1.0 / x.sqrt(),
        MathF::Tanh => x.tanh(),
    }
}

/// An operation on two pairs of binary16. Sums and products in f32 hold more than twice the digits, so rounding them
/// once more gives what rounding once would.
#[inline(always)]
pub(crate) fn half2(op: BinF, x: u32, y: u32) -> u32 {
    let one = |x: u32, y: u32| {
        let (x, y) = (f16_to_f32(x), f16_to_f32(y));
        f32_to_f16(match op {
            BinF::Add => x + y,
            BinF::Sub => x - y,
            BinF::Mul => x * y,
            BinF::Div => x / y,
            BinF::Min => x.min(y),
            BinF::Max => x.max(y),
            BinF::CopySign => y.copysign(x),
        })
    };
    one(x & 0xFFFF, y & 0xFFFF) | one(x >> 16, y >> 16) << 16
}

/// A comparison of floats.
#[inline(always)]
pub(crate) fn compare_f(cmp: Cmp, x: f32, y: f32) -> bool {
    let unordered = x.is_nan() || y.is_nan();
    match cmp {
        Cmp::Eq => x == y,
        Cmp::Ne => x != y && !unordered,
        Cmp::Lt => x < y,
        Cmp::Le => x <= y,
        Cmp::Gt => x > y,
        Cmp::Ge => x >= y,
        Cmp::Equ => x == y || unordered,
        Cmp::Neu => x != y,
        Cmp::Ltu => x < y || unordered,
        Cmp::Leu => x <= y || unordered,
        Cmp::Gtu => x > y || unordered,
        Cmp::Geu => x >= y || unordered,
        Cmp::Num => !unordered,
        Cmp::Nan => unordered,
    }
}

/// A comparison of anything ordered.
#[inline(always)]
pub(crate) fn compare<T: Ord>(cmp: Cmp, x: T, y: T) -> bool {
    match cmp {
        Cmp::Eq | Cmp::Equ => x == y,
        Cmp::Ne | Cmp::Neu => x != y,
        Cmp::Lt | Cmp::Ltu => x < y,
        Cmp::Le | Cmp::Leu => x <= y,
        Cmp::Gt | Cmp::Gtu => x > y,
        Cmp::Ge | Cmp::Geu => x >= y,
        Cmp::Num => true,
        Cmp::Nan => false,
    }
}

/// The value of a word or wide register of type `from`, as an integer that keeps sign and size.
#[inline(always)]
fn integer(from: Num, x: u64) -> i128 {
    match from {
        Num::U8 => i128::from(x as u8),
        Num::S8 => i128::from(x as i8),
        Num::U16 => i128::from(x as u16),
        Num::S16 => i128::from(x as i16),
        Num::U32 => i128::from(x as u32),
        Num::S32 => i128::from(x as i32),
        Num::U64 => i128::from(x),
        Num::S64 => i128::from(x as i64),
        Num::F16 | Num::Bf16 | Num::F32 => 0,
    }
}

fn is_float(n: Num) -> bool {
    matches!(n, Num::F16 | Num::Bf16 | Num::F32)
}

fn float(from: Num, x: u64) -> f32 {
    match from {
        Num::F16 => f16_to_f32(x as u32),
        Num::Bf16 => f32::from_bits((x as u32) << 16),
        Num::F32 => f32::from_bits(x as u32),
        Num::U8 | Num::S8 | Num::U16 | Num::S16 | Num::U32 | Num::S32 | Num::U64 | Num::S64 => {
            integer(from, x) as f32
        }
    }
}

fn round(how: Round, x: f32) -> f32 {
    match how {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// One conversion; `x` and the result are raw register bits.
pub(crate) fn convert(to: Num, from: Num, how: Round, x: u64) -> u64 {
    let value = || {
        let v = float(from, x);
        // Between equal types a rounding mode means: to a whole number.
        if from == Num::F32 { round(how, v) } else { v }
    };
    // Whole numbers keep sign and size on the way; `as` saturates floats and cuts integers, as the device does.
    let whole = || round(how, float(from, x));
    let cut = || integer(from, x);
    let floats = is_float(from);
    match to {
        Num::F16 => u64::from(f32_to_f16(float(from, x))),
        Num::Bf16 => u64::from(f32_to_bf16(float(from, x))),
        Num::F32 => u64::from(if floats { value() } else { float(from, x) }.to_bits()),
        Num::U8 => u64::from(if floats { whole() as u8 } else { cut() as u8 }),
        Num::S8 => (if floats { whole() as i8 } else { cut() as i8 }) as i64 as u64,
        Num::U16 => u64::from(if floats { whole() as u16 } else { cut() as u16 }),
        Num::S16 => (if floats { whole() as i16 } else { cut() as i16 }) as i64 as u64,
        Num::U32 => u64::from(if floats { whole() as u32 } else { cut() as u32 }),
        Num::S32 => (if floats { whole() as i32 } else { cut() as i32 }) as i64 as u64,
        Num::U64 => {
            if floats {
                whole() as u64
            } else {
                cut() as u64
            }
        }
        Num::S64 => (if floats { whole() as i64 } else { cut() as i64 }) as u64,
    }
}

/// `prmt.b32` in its default mode.
pub(crate) fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut out = 0;
    for i in 0..4 {
        let s = selector >> (4 * i);
        let byte = (bytes >> (8 * (s & 7))) as u8;
        let byte = if s & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        out |= u32::from(byte) << (8 * i);
    }
    out
}

/// `bfe`: `len` bits from bit `pos`.
pub(crate) fn bit_field(signed: bool, x: u32, pos: u32, len: u32) -> u32 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if len == 0 || pos > 31 {
        return if signed && len != 0 { (x as i32 >> 31) as u32 } else { 0 };
    }
    let top = (pos + len).min(32);
    let shifted = x << (32 - top);
    let drop = 32 - (top - pos);
    if signed { (shifted as i32 >> drop) as u32 } else { shifted >> drop }
}

/// `bfi`: puts `len` low bits of `x` into `y` at bit `pos`, in a word of `width` bits.
pub(crate) fn insert(x: u64, y: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if pos >= width {
        return y;
    }
    let ones = if len > 63 { u64::MAX } else { (1 << len) - 1 };
    let field = ones << pos;
    y & !field | (x << pos) & field
}

/// Signed bytes of `a` times those of `b`, added to `c`.
pub(crate) fn dp4a(a: u32, b: u32, c: u32) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    let sum: i32 = a.iter().zip(b).map(|(&x, y)| i32::from(x as i8) * i32::from(y as i8)).sum();
    c.wrapping_add(sum as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_through_f32() {
        for h in 0..=0xFFFFu32 {
            let x = f16_to_f32(h);
            if !x.is_nan() {
                assert_eq!(f32_to_f16(x), h, "{h:#x}");
            }
        }
        assert_eq!(f32_to_f16(65519.9), 0x7BFF);
        assert_eq!(f32_to_f16(65520.0), 0x7C00);
        assert_eq!(f32_to_f16(1.0 + 1.5 / 1024.0), 0x3C02, "ties go to even");
    }

    #[test]
    fn exp2_is_close_and_right_at_the_ends() {
        for i in -3000..3000 {
            let x = i as f32 / 23.0;
            let want = f64::from(x).exp2() as f32;
            let got = exp2(x);
            assert!(
                got == want || (got - want).abs() <= want.abs() * 2.5e-7 + 3e-45,
                "{x}: {got} {want}"
            );
        }
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn halves_in_pairs() {
        // 1.5 - 2 and 3 · -1024, then 1024 + 128 + 5 with its bias taken away.
        assert_eq!(half2(BinF::Sub, 0x3E00_3E00, 0x4000_3E00), 0xB800_0000);
        assert_eq!(half2(BinF::Mul, 0x4200_0000, 0xE400_0000), 0xEA00_0000);
        assert_eq!(half2(BinF::Sub, 0x6485_6400, 0x6480_6480), 0x4500_D800);
    }

    #[test]
    fn bytes_and_bits() {
        assert_eq!(permute(0x3322_1100, 0x7766_5544, 0x7531), 0x7755_3311);
        assert_eq!(bit_field(true, 0xF0, 4, 4), u32::MAX);
        assert_eq!(bit_field(false, 0xF0, 4, 4), 15);
        assert_eq!(dp4a(0xFF01_0203, 0x0102_0304, 10) as i32, 10 - 1 + 2 + 6 + 12);
    }
}
