//! Operations on registers: what each does to the 32 lanes of a warp.

use crate::alu;
use crate::op::Alu;
use crate::warp::{FULL, Warp, logic};

impl Warp {
    /// Executes `alu` for the lanes in `mask`.
    #[inline(always)]
    pub(crate) fn compute(&mut self, alu: &Alu, mask: u32) {
        match *alu {
            Alu::Mov32 { d, a } => {
                let x = self.word(a);
                self.set32(d, mask, |i| x[i]);
            }
            Alu::Mov64 { d, a } => {
                let x = self.wide(a);
                self.set64(d, mask, |i| x[i]);
            }
            Alu::Pack32 { d, lo, hi } => {
                let (x, y) = (self.word(lo), self.word(hi));
                self.set32(d, mask, |i| x[i] & 0xFFFF | y[i] << 16);
            }
            Alu::Pack64 { d, lo, hi } => {
                let (x, y) = (self.word(lo), self.word(hi));
                self.set64(d, mask, |i| u64::from(x[i]) | u64::from(y[i]) << 32);
            }
            Alu::Unpack32 { lo, hi, a } => {
                let x = self.word(a);
                self.set32(lo, mask, |i| x[i] & 0xFFFF);
                self.set32(hi, mask, |i| x[i] >> 16);
            }
            Alu::Unpack64 { lo, hi, a } => {
                let x = self.wide(a);
                self.set32(lo, mask, |i| x[i] as u32);
                self.set32(hi, mask, |i| (x[i] >> 32) as u32);
            }
            Alu::PredSet { d, value } => self.set_pred(d, mask, if value { FULL } else { 0 }),
            Alu::PredNot { d, a } => self.set_pred(d, mask, !self.preds[usize::from(a)]),
            Alu::Pred2 { op, d, a, b } => {
                let bits = logic(op, self.preds[usize::from(a)], self.preds[usize::from(b)]);
                self.set_pred(d, mask, bits);
            }
            Alu::Int2 { op, ty, d, a, b } => self.int2(op, ty, [d, a, b], mask),
            Alu::Int3 { op, ty, d, a, b, c } => self.int3(op, ty, [d, a, b, c], mask),
            Alu::Bfi { wide, d, a, b, pos, len } => {
                let (p, n) = (self.word(pos), self.word(len));
                if wide {
                    let (x, y) = (self.wide(a), self.wide(b));
                    self.set64(d, mask, |i| alu::insert(x[i], y[i], p[i], n[i], 64));
                } else {
                    let (x, y) = (self.word(a).map(u64::from), self.word(b).map(u64::from));
                    self.set32(d, mask, |i| alu::insert(x[i], y[i], p[i], n[i], 32) as u32);
                }
            }
            Alu::Lop3 { d, a, b, c, table } => {
                let (x, y, z) = (self.word(a), self.word(b), self.word(c));
                self.set32(d, mask, |i| {
                    (0..8).filter(|k| table >> k & 1 != 0).fold(0, |out, k| {
                        let pick = |v: u32, bit: u32| if k & bit != 0 { v } else { !v };
                        out | pick(x[i], 4) & pick(y[i], 2) & pick(z[i], 1)
                    })
                });
            }
            Alu::MadWide { signed, d, a, b, c } => self.mad_wide(signed, [d, a, b, c], mask),
            Alu::Float2 { op, d, a, b } => self.float2(op, [d, a, b], mask),
            Alu::Half2 { op, d, a, b } => {
                let (x, y) = (self.word(a), self.word(b));
                self.set32(d, mask, |i| alu::half2(op, x[i], y[i]));
            }
            Alu::Fma { d, a, b, c } => self.fma([d, a, b, c], mask),
            Alu::Math { op, d, a } => {
                let x = self.word(a);
                self.set32(d, mask, |i| alu::math(op, f32::from_bits(x[i])).to_bits());
            }
            Alu::Cvt { to, from, round, d, a } => self.cvt(to, from, round, d, a, mask),
            Alu::CvtPair { bf16, d, hi, lo } => {
                let (x, y) = (self.word(hi), self.word(lo));
                let pack = if bf16 { alu::f32_to_bf16 } else { alu::f32_to_f16 };
                self.set32(d, mask, |i| {
                    pack(f32::from_bits(x[i])) << 16 | pack(f32::from_bits(y[i]))
                });
            }
            Alu::Setp { cmp, ty, d, inverse, a, b, combine } => {
                let mut yes = self.compare(cmp, ty, a, b);
                let mut no = !yes;
                if let Some((op, guard)) = combine {
                    let other = self.guarded(guard, FULL);
                    (yes, no) = (logic(op, yes, other), logic(op, no, other));
                }
                self.set_pred(d, mask, yes);
                if let Some(inverse) = inverse {
                    self.set_pred(inverse, mask, no);
                }
            }
            Alu::Selp { wide, d, a, b, p } => {
                let bits = self.preds[usize::from(p)];
                if wide {
                    let (x, y) = (self.wide(a), self.wide(b));
                    self.set64(d, mask, |i| if bits >> i & 1 != 0 { x[i] } else { y[i] });
                } else {
                    let (x, y) = (self.word(a), self.word(b));
                    self.set32(d, mask, |i| if bits >> i & 1 != 0 { x[i] } else { y[i] });
                }
            }
        }
    }
}
