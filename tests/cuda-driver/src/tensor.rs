//! Tensor-core instructions: `mma.m16n8k16` and the `ldmatrix` that feeds it.
//!
//! Fragment layouts are those of the PTX manual: with `g = lane / 4` and `t = lane % 4`, A holds rows
//! `g` and `g + 8`, columns `2t` and `2t + 8`; B holds rows `2t` and `2t + 8`, column `g`; C and D hold
//! rows `g` and `g + 8`, columns `2t` and `2t + 1`.

use crate::alu;
use crate::fault::Slip;
use crate::op::Mma;
use crate::shared::{Shared, Who};
use crate::warp::{FULL, Warp};

/// The two halves of a register as floats.
#[inline(always)]
fn pair(bf16: bool, x: u32) -> (f32, f32) {
    if bf16 {
        (f32::from_bits(x << 16), f32::from_bits(x & 0xFFFF_0000))
    } else {
        (alu::f16_to_f32(x & 0xFFFF), alu::f16_to_f32(x >> 16))
    }
}

/// D = A·B + C, all lanes here.
#[inline(always)]
pub(crate) fn mma(warp: &mut Warp, m: &Mma) {
    let mut a = [[0.0f32; 16]; 16];
    let mut b = [[0.0f32; 8]; 16];
    let mut d = [[0.0f32; 8]; 16];
    for (k, &r) in m.a.iter().enumerate() {
        let row = warp.word(r);
        for (lane, &x) in row.iter().enumerate() {
            let (g, t) = (lane / 4 + 8 * (k & 1), 2 * (lane % 4) + 8 * (k >> 1));
            (a[g][t], a[g][t + 1]) = pair(m.bf16, x);
        }
    }
    for (k, &r) in m.b.iter().enumerate() {
        let row = warp.word(r);
        for (lane, &x) in row.iter().enumerate() {
            let (t, g) = (2 * (lane % 4) + 8 * k, lane / 4);
            (b[t][g], b[t + 1][g]) = pair(m.bf16, x);
        }
    }
    for (k, &r) in m.c.iter().enumerate() {
        let row = warp.word(r);
        for (lane, &x) in row.iter().enumerate() {
            d[lane / 4 + 8 * (k >> 1)][2 * (lane % 4) + (k & 1)] = f32::from_bits(x);
        }
    }
    for (row, sums) in a.iter().zip(&mut d) {
        for (&x, b) in row.iter().zip(&b) {
            for (s, &y) in sums.iter_mut().zip(b) {
                *s = x.mul_add(y, *s);
            }
        }
    }
    for (k, &r) in m.d.iter().enumerate() {
        warp.set32(r, FULL, |lane| d[lane / 4 + 8 * (k >> 1)][2 * (lane % 4) + (k & 1)].to_bits());
    }
}

/// Loads `count` 8×8 matrices of 16-bit values; lane `8i + r` has the address of row `r` of matrix `i`.
#[inline(always)]
pub(crate) fn ldmatrix(
    warp: &mut Warp,
    shared: &mut Shared,
    (count, trans): (usize, bool),
    d: [u16; 4],
    (base, offset): (u16, i32),
    who: Who,
) -> Result<(), Box<Slip>> {
    let addresses = warp.word(base);
    for (i, &d) in d[..count].iter().enumerate() {
        let mut rows = [[0u32; 4]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            let lane = 8 * i + r;
            let at = addresses[lane].wrapping_add_signed(offset);
            let who = Who { thread: who.thread + lane as u16, ..who };
            shared.load(u64::from(at), 16, who, row)?;
        }
        if trans {
            let half =
                |row: usize, column: usize| rows[row][column / 2] >> (16 * (column % 2)) & 0xFFFF;
            warp.set32(d, FULL, |l| half(2 * (l % 4), l / 4) | half(2 * (l % 4) + 1, l / 4) << 16);
        } else {
            warp.set32(d, FULL, |l| rows[l / 4][l % 4]);
        }
    }
    Ok(())
}
