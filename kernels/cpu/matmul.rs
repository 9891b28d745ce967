//! Linear layers: activations times a weight matrix.
//!
//! Every output is the dot product of an input row and a weight row, summed in one fixed order: eight lanes along the
//! columns, then the lanes. It depends neither on the number of tokens nor on the number of threads, so a
//! prompt gives the same bits however it is cut.

use half::{bf16, f16};

use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Simd};
use crate::formats::{Dense, Element, Matrix};
use crate::{Isa, Pool};

/// Rows of the weights in a part of the parallel region.
const PART_ROWS: usize = 64;

/// `out = x · wᵀ`: `x` is `[n, cols]`, `out` is `[n, rows]`.
///
/// # Panics
/// When `x` and `out` are not as many whole rows.
pub fn matmul(isa: Isa, pool: &Pool, w: &Matrix<'_>, x: &[f32], out: &mut [f32]) {
    run(isa, pool, w, x, out, false);
}

/// `out += x · wᵀ`: a linear layer that adds to the residual stream.
///
/// # Panics
/// When `x` and `out` are not as many whole rows.
pub fn matmul_add(isa: Isa, pool: &Pool, w: &Matrix<'_>, x: &[f32], out: &mut [f32]) {
    run(isa, pool, w, x, out, true);
}

fn run(isa: Isa, pool: &Pool, w: &Matrix<'_>, x: &[f32], out: &mut [f32], add: bool) {
    if w.rows == 0 {
        return assert!(out.is_empty(), "outputs of a matrix without rows");
    }
    let n = out.len() / w.rows;
    assert_eq!(
        (out.len(), x.len()),
        (n * w.rows, n * w.cols),
        "matmul {} x {}: outputs, inputs",
        w.rows,
        w.cols
    );
    let out = SharedMut::new(out);
    pool.run(w.rows.div_ceil(PART_ROWS), &|part| {
        let from = part * PART_ROWS;
        let shape =
            Shape { rows: w.rows, cols: w.cols, n, from, to: w.rows.min(from + PART_ROWS), add };
        match w.data {
            Dense::F32(w) => isa.run(Part { shape, w, x, out }),
            Dense::F16(w) => isa.run(Part::<f16> { shape, w, x, out }),
            Dense::Bf16(w) => isa.run(Part::<bf16> { shape, w, x, out }),
        }
    });
}

/// Sizes of a matmul, and the weight rows that a part of it is about.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    n: usize,
    from: usize,
    to: usize,
    add: bool,
}

/// The rows `shape.from .. shape.to` of the outputs.
struct Part<'a, E> {
    shape: Shape,
    w: &'a [E],
    x: &'a [f32],
    out: SharedMut<'a, f32>,
}

impl<E: Element> Kernel for Part<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shape { from, to, n, .. } = self.shape;
        let mut row = from;
        if n < 4 {
            while row + 8 <= to {
                (0..n).for_each(|token| self.tile::<S, 8, 1>(s, row, token));
                row += 8;
            }
        } else {
            while row + 3 <= to {
                (0..n / 4).for_each(|tile| self.tile::<S, 3, 4>(s, row, 4 * tile));
                (n / 4 * 4..n).for_each(|token| self.tile::<S, 3, 1>(s, row, token));
                row += 3;
            }
        }
        for row in row..to {
            (0..n).for_each(|token| self.tile::<S, 1, 1>(s, row, token));
        }
    }
}

impl<E: Element> Part<'_, E> {
    /// `R` rows of the weights times `T` tokens.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize>(&self, s: S, row: usize, token: usize) {
        let Shape { rows, cols, .. } = self.shape;
        let w: [_; R] =
            std::array::from_fn(|r| self.w[(row + r) * cols..][..cols].as_chunks::<LANES>());
        let x: [_; T] =
            std::array::from_fn(|t| self.x[(token + t) * cols..][..cols].as_chunks::<LANES>());
        let mut sums = [[s.splat(0.0); T]; R];
        for k in 0..cols / LANES {
            let xs: [_; T] = std::array::from_fn(|t| s.load(&x[t].0[k]));
            for r in 0..R {
                let w = E::load(s, &w[r].0[k]);
                for t in 0..T {
                    sums[r][t] = s.mul_add(w, xs[t], sums[r][t]);
                }
            }
        }
        for t in 0..T {
            // SAFETY: only this part writes these rows of the outputs.
            let out = unsafe { self.out.slice((token + t) * rows + row, R) };
            for r in 0..R {
                let mut sum = sums[r][t];
                if !cols.is_multiple_of(LANES) {
                    sum = s.mul_add(E::load_some(s, w[r].1), s.load_some(x[t].1, 0.0), sum);
                }
                let sum = s.sum(sum);
                out[r] = if self.shape.add { out[r] + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cases::{self, Numbers};
    use crate::{Isa, Pool, reference};

    use super::*;

    /// The weights of a case in each type, with the f32 values they stand for.
    fn each_type(values: &[f32], check: impl Fn(&str, Dense<'_>, &[f32])) {
        let half: Vec<_> = values.iter().map(|&v| f16::from_f32(v)).collect();
        let brain: Vec<_> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        check("f32", Dense::F32(values), values);
        check("f16", Dense::F16(&half), &half.iter().map(|v| v.to_f32()).collect::<Vec<_>>());
        check("bf16", Dense::Bf16(&brain), &brain.iter().map(|v| v.to_f32()).collect::<Vec<_>>());
    }

    #[test]
    fn matmul_matches_the_reference() {
        let pool = Pool::new(2);
        for case in cases::MATMUL {
            let mut numbers = Numbers::new(case.seed());
            let values = numbers.normal(case.rows * case.cols);
            let x = numbers.normal(case.n * case.cols);
            each_type(&values, |name, data, values| {
                let mut want = vec![0.0; case.n * case.rows];
                reference::matmul(values, case.rows, case.cols, &x, &mut want);
                for isa in Isa::available() {
                    let w = Matrix::new(case.rows, case.cols, data);
                    let mut got = vec![f32::NAN; want.len()];
                    matmul(isa, &pool, &w, &x, &mut got);
                    let place = format!("{case:?} {name} {isa:?}");
                    cases::assert_close(&got, &want, case.tolerance(), &place);
                    matmul_add(isa, &pool, &w, &x, &mut got);
                    let twice: Vec<_> = want.iter().map(|v| 2.0 * v).collect();
                    cases::assert_close(&got, &twice, 2.0 * case.tolerance(), &place);
                }
            });
        }
    }

    #[test]
    fn the_bits_depend_on_neither_threads_nor_tokens() {
        for case in cases::MATMUL {
            let mut numbers = Numbers::new(case.seed());
            let values = numbers.normal(case.rows * case.cols);
            let x = numbers.normal(case.n * case.cols);
            each_type(&values, |name, data, _| {
                for isa in Isa::available() {
                    let w = Matrix::new(case.rows, case.cols, data);
                    let mut one_by_one = vec![0.0; case.n * case.rows];
                    let alone = Pool::new(1);
                    for (x, out) in x.chunks(case.cols).zip(one_by_one.chunks_mut(case.rows)) {
                        matmul(isa, &alone, &w, x, out);
                    }
                    for n_threads in [1, 2, 3] {
                        let mut got = vec![0.0; one_by_one.len()];
                        matmul(isa, &Pool::new(n_threads), &w, &x, &mut got);
                        cases::assert_same_bits(
                            &got,
                            &one_by_one,
                            &format!("{case:?} {name} {isa:?}"),
                        );
                    }
                }
            });
        }
    }

    #[test]
    fn not_a_number_and_infinity_come_through() {
        let pool = Pool::new(1);
        for isa in Isa::available() {
            for (bad, column) in [(f32::NAN, 0), (f32::INFINITY, 8), (f32::NEG_INFINITY, 11)] {
                let mut w = vec![0.5; 9 * 12];
                w[4 * 12 + column] = bad;
                let mut out = vec![0.0; 9];
                matmul(isa, &pool, &Matrix::new(9, 12, Dense::F32(&w)), &[1.0; 12], &mut out);
                for (row, out) in out.iter().enumerate() {
                    let want = if row == 4 { bad } else { 6.0 };
                    assert!(
                        *out == want || (out.is_nan() && want.is_nan()),
                        "{isa:?} row {row}: {out}"
                    );
                }
            }
        }
    }
}
