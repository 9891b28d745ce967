//! What a warp computes: each operation on the lanes of a mask.

use super::{BinF, BinI, Cmp, Ext, Int, Num, Round, Warp, alu};

impl Warp {
    #[inline(always)]
    pub(crate) fn int2(&mut self, op: BinI, ty: Int, [d, a, b]: [u16; 3], mask: u32) {
        match ty {
            Int::U64 | Int::S64 => self.int2_wide(op, ty.signed(), [d, a, b], mask),
            Int::U32 | Int::S32 => {
                self.int2_word(op, ty.signed(), d, self.word(a), self.word(b), mask)
            }
            Int::U8 | Int::S8 | Int::U16 | Int::S16 => {
                let shift = matches!(op, BinI::Shl | BinI::Shr);
                let x = self.word(a).map(|x| alu::extend(ty, x));
                let y = self.word(b).map(|y| if shift { y } else { alu::extend(ty, y) });
                self.int2_word(op, ty.signed(), d, x, y, mask);
                let bits = alu::low_bits(ty);
                let out = self.word(d);
                self.set32(d, mask, |i| out[i] & bits);
            }
        }
    }

    #[inline(always)]
    fn int2_word(&mut self, op: BinI, signed: bool, d: u16, x: [u32; 32], y: [u32; 32], mask: u32) {
        macro_rules! each {
            (|$x:ident, $y:ident| $f:expr) => {
                self.set32(d, mask, |i| {
                    let ($x, $y) = (x[i], y[i]);
                    $f
                })
            };
        }
        match (op, signed) {
            (BinI::Add, _) => each!(|x, y| x.wrapping_add(y)),
            (BinI::Sub, _) => each!(|x, y| x.wrapping_sub(y)),
            (BinI::Mul, _) => each!(|x, y| x.wrapping_mul(y)),
            (BinI::MulHi, false) => each!(|x, y| ((u64::from(x) * u64::from(y)) >> 32) as u32),
            (BinI::MulHi, true) => {
                each!(|x, y| ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32)
            }
            (BinI::Div, false) => each!(|x, y| x.checked_div(y).unwrap_or(u32::MAX)),
            (BinI::Div, true) => {
                each!(|x, y| (x as i32).checked_div(y as i32).unwrap_or(-1) as u32)
            }
            (BinI::Rem, false) => each!(|x, y| x.checked_rem(y).unwrap_or(x)),
            (BinI::Rem, true) => each!(|x, y| (x as i32).checked_rem(y as i32).unwrap_or(0) as u32),
            (BinI::And, _) => each!(|x, y| x & y),
            (BinI::Or, _) => each!(|x, y| x | y),
            (BinI::Xor, _) => each!(|x, y| x ^ y),
            (BinI::Min, false) => each!(|x, y| x.min(y)),
            (BinI::Min, true) => each!(|x, y| (x as i32).min(y as i32) as u32),
            (BinI::Max, false) => each!(|x, y| x.max(y)),
            (BinI::Max, true) => each!(|x, y| (x as i32).max(y as i32) as u32),
            (BinI::Shl, _) => each!(|x, y| if y > 31 { 0 } else { x << (y & 31) }),
            (BinI::Shr, false) => each!(|x, y| if y > 31 { 0 } else { x >> (y & 31) }),
            (BinI::Shr, true) => each!(|x, y| (x as i32 >> y.min(31)) as u32),
        }
    }

    #[inline(always)]
    fn int2_wide(&mut self, op: BinI, signed: bool, [d, a, b]: [u16; 3], mask: u32) {
        let x = self.wide(a);
        if matches!(op, BinI::Shl | BinI::Shr) {
            let n = self.word(b);
            return match (op, signed) {
                (BinI::Shl, _) => self.set64(d, mask, |i| x[i].checked_shl(n[i]).unwrap_or(0)),
                (_, false) => self.set64(d, mask, |i| x[i].checked_shr(n[i]).unwrap_or(0)),
                (_, true) => self.set64(d, mask, |i| (x[i] as i64 >> n[i].min(63)) as u64),
            };
        }
        let y = self.wide(b);
        macro_rules! each {
            (|$x:ident, $y:ident| $f:expr) => {
                self.set64(d, mask, |i| {
                    let ($x, $y) = (x[i], y[i]);
                    $f
                })
            };
        }
        match (op, signed) {
            (BinI::Add, _) => each!(|x, y| x.wrapping_add(y)),
            (BinI::Sub, _) => each!(|x, y| x.wrapping_sub(y)),
            (BinI::Mul, _) => each!(|x, y| x.wrapping_mul(y)),
            (BinI::MulHi, false) => each!(|x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64),
            (BinI::MulHi, true) => {
                each!(|x, y| ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64)
            }
            (BinI::Div, false) => each!(|x, y| x.checked_div(y).unwrap_or(u64::MAX)),
            (BinI::Div, true) => {
                each!(|x, y| (x as i64).checked_div(y as i64).unwrap_or(-1) as u64)
            }
            (BinI::Rem, false) => each!(|x, y| x.checked_rem(y).unwrap_or(x)),
            (BinI::Rem, true) => each!(|x, y| (x as i64).checked_rem(y as i64).unwrap_or(0) as u64),
            (BinI::And, _) => each!(|x, y| x & y),
            (BinI::Or, _) => each!(|x, y| x | y),
            (BinI::Xor | BinI::Shl | BinI::Shr, _) => each!(|x, y| x ^ y),
            (BinI::Min, false) => each!(|x, y| x.min(y)),
            (BinI::Min, true) => each!(|x, y| (x as i64).min(y as i64) as u64),
            (BinI::Max, false) => each!(|x, y| x.max(y)),
            (BinI::Max, true) => each!(|x, y| (x as i64).max(y as i64) as u64),
        }
    }

    pub(crate) fn int3(&mut self, op: Ext, ty: Int, [d, a, b, c]: [u16; 4], mask: u32) {
        if ty.class() == crate::parse::Class::Wide {
            let x = self.wide(a);
            if op == Ext::Abs {
                self.set64(d, mask, |i| (x[i] as i64).unsigned_abs());
            } else {
                let (y, z) = (self.wide(b), self.wide(c));
                self.set64(d, mask, |i| x[i].wrapping_mul(y[i]).wrapping_add(z[i]));
            }
            return;
        }
        let (x, y, z) = (self.word(a), self.word(b), self.word(c));
        let bits = alu::low_bits(ty);
        match op {
            Ext::MadLo => {
                self.set32(d, mask, |i| x[i].wrapping_mul(y[i]).wrapping_add(z[i]) & bits)
            }
            Ext::Bfe => self.set32(d, mask, |i| alu::bit_field(ty.signed(), x[i], y[i], z[i])),
            Ext::Prmt => self.set32(d, mask, |i| alu::permute(x[i], y[i], z[i])),
            Ext::ShfL => self.set32(d, mask, |i| {
                let both = u64::from(y[i]) << 32 | u64::from(x[i]);
                (both << (z[i] & 31) >> 32) as u32
            }),
            Ext::ShfR => self.set32(d, mask, |i| {
                let both = u64::from(y[i]) << 32 | u64::from(x[i]);
                (both >> (z[i] & 31)) as u32
            }),
            Ext::Dp4aS => self.set32(d, mask, |i| alu::dp4a(x[i], y[i], z[i])),
            Ext::Abs => {
                self.set32(d, mask, |i| (alu::extend(ty, x[i]) as i32).unsigned_abs() & bits)
            }
            Ext::Popc => self.set32(d, mask, |i| x[i].count_ones()),
            Ext::Clz => self.set32(d, mask, |i| x[i].leading_zeros()),
            Ext::MulWide16 => {
                self.set32(d, mask, |i| alu::extend(ty, x[i]).wrapping_mul(alu::extend(ty, y[i])))
            }
        }
    }

    #[inline(always)]
    pub(crate) fn mad_wide(&mut self, signed: bool, [d, a, b, c]: [u16; 4], mask: u32) {
        let (x, y, z) = (self.word(a), self.word(b), self.wide(c));
        if signed {
            self.set64(d, mask, |i| {
                (i64::from(x[i] as i32) * i64::from(y[i] as i32)).wrapping_add(z[i] as i64) as u64
            });
        } else {
            self.set64(d, mask, |i| (u64::from(x[i]) * u64::from(y[i])).wrapping_add(z[i]));
        }
    }

    #[inline(always)]
    pub(crate) fn float2(&mut self, op: BinF, [d, a, b]: [u16; 3], mask: u32) {
        let (x, y) = (self.word(a).map(f32::from_bits), self.word(b).map(f32::from_bits));
        match op {
            BinF::Add => self.set32(d, mask, |i| (x[i] + y[i]).to_bits()),
            BinF::Sub => self.set32(d, mask, |i| (x[i] - y[i]).to_bits()),
            BinF::Mul => self.set32(d, mask, |i| (x[i] * y[i]).to_bits()),
            BinF::Div => self.set32(d, mask, |i| (x[i] / y[i]).to_bits()),
            BinF::Min => self.set32(d, mask, |i| x[i].min(y[i]).to_bits()),
            BinF::Max => self.set32(d, mask, |i| x[i].max(y[i]).to_bits()),
            BinF::CopySign => self.set32(d, mask, |i| y[i].copysign(x[i]).to_bits()),
        }
    }

    #[inline(always)]
    pub(crate) fn fma(&mut self, [d, a, b, c]: [u16; 4], mask: u32) {
        let (x, y, z) = (self.word(a), self.word(b), self.word(c));
        self.set32(d, mask, |i| {
            f32::from_bits(x[i]).mul_add(f32::from_bits(y[i]), f32::from_bits(z[i])).to_bits()
        });
    }

    #[inline(always)]
    pub(crate) fn cvt(&mut self, to: Num, from: Num, how: Round, d: u16, a: u16, mask: u32) {
        use crate::parse::Class::Wide;
        match (to, from) {
            (Num::F32, Num::F16) => {
                let x = self.word(a);
                self.set32(d, mask, |i| alu::f16_to_f32(x[i]).to_bits());
            }
            (Num::F32, Num::S32) => {
                let x = self.word(a);
                self.set32(d, mask, |i| (x[i] as i32 as f32).to_bits());
            }
            (Num::U64 | Num::S64, Num::U32) => {
                let x = self.word(a);
                self.set64(d, mask, |i| u64::from(x[i]));
            }
            (Num::U64 | Num::S64, Num::S32) => {
                let x = self.word(a);
                self.set64(d, mask, |i| x[i] as i32 as i64 as u64);
            }
            (Num::U32 | Num::S32, Num::U64 | Num::S64) => {
                let x = self.wide(a);
                self.set32(d, mask, |i| x[i] as u32);
            }
            _ => {
                let x =
                    if from.class() == Wide { self.wide(a) } else { self.word(a).map(u64::from) };
                if to.class() == Wide {
                    self.set64(d, mask, |i| alu::convert(to, from, how, x[i]));
                } else {
                    self.set32(d, mask, |i| alu::convert(to, from, how, x[i]) as u32);
                }
            }
        }
    }

    /// The lanes where a comparison holds.
    #[inline(always)]
    pub(crate) fn compare(&self, cmp: Cmp, ty: Num, a: u16, b: u16) -> u32 {
        macro_rules! each {
            ($f:expr) => {{
                let mut bits = 0u32;
                for i in 0..32 {
                    bits |= u32::from($f(i)) << i;
                }
                bits
            }};
        }
        if matches!(ty, Num::U64 | Num::S64) {
            let (x, y) = (self.wide(a), self.wide(b));
            return if ty == Num::S64 {
                each!(|i: usize| alu::compare(cmp, x[i] as i64, y[i] as i64))
            } else {
                each!(|i: usize| alu::compare(cmp, x[i], y[i]))
            };
        }
        let (x, y) = (self.word(a), self.word(b));
        match ty {
            Num::F32 => {
                each!(|i: usize| alu::compare_f(cmp, f32::from_bits(x[i]), f32::from_bits(y[i])))
            }
            Num::S32 => each!(|i: usize| alu::compare(cmp, x[i] as i32, y[i] as i32)),
            Num::S16 => each!(|i: usize| alu::compare(cmp, x[i] as i16, y[i] as i16)),
            Num::S8 => each!(|i: usize| alu::compare(cmp, x[i] as i8, y[i] as i8)),
            Num::U16 => each!(|i: usize| alu::compare(cmp, x[i] as u16, y[i] as u16)),
            Num::U8 => each!(|i: usize| alu::compare(cmp, x[i] as u8, y[i] as u8)),
            Num::F16 => {
                each!(|i: usize| alu::compare_f(cmp, alu::f16_to_f32(x[i]), alu::f16_to_f32(y[i])))
            }
            Num::Bf16 => each!(|i: usize| {
                alu::compare_f(cmp, f32::from_bits(x[i] << 16), f32::from_bits(y[i] << 16))
            }),
            Num::U32 | Num::U64 | Num::S64 => each!(|i: usize| alu::compare(cmp, x[i], y[i])),
        }
    }
}
