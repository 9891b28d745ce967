//! From the totals of panels to the outputs of a linear layer.

use std::ops::Range;

use super::elementwise::{Activation, with_activation};
use super::functions::{Binary, Gated};
use super::linear::Totals;
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Simd};
use crate::Isa;
use crate::packed::PANEL;

/// Tokens whose outputs are written together: what is read of a panel's totals is as long as several cache lines, and what is
/// written of as many tokens are a few streams.
const TOKENS: usize = 16;

/// Some panels of a matrix, each as many after the last as `step` says.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub(super) first: usize,
    pub(super) step: usize,
}

impl Strided {
    /// Panels one after the other.
    pub(super) fn from(first: usize) -> Self {
        Self { first, step: 1 }
    }

    #[inline(always)]
    pub(super) fn get(self, i: usize) -> usize {
        self.first + i * self.step
    }
}

/// Where outputs belong: the rows of some panels, of some tokens.
pub(super) struct Place<'a> {
    /// `[n, rows]`.
    pub(super) out: SharedMut<'a, f32>,
    pub(super) rows: usize,
    pub(super) panels: Strided,
    pub(super) tokens: Range<usize>,
}

/// Writes the totals of some panels and their bias, or adds them to what is there.
///
/// # Safety
/// No other thread touches the place.
pub(super) unsafe fn write_sums(
    isa: Isa,
    place: Place<'_>,
    totals: &[&mut Totals],
    bias: Option<&[f32]>,
    add: bool,
) {
    isa.run(Write { panels: totals.len(), place, add, value: Sums { totals, bias } });
}

/// Writes `act(gate) * up` for some panels of both.
///
/// # Safety
/// No other thread touches the place.
pub(super) unsafe fn write_gated(
    isa: Isa,
    place: Place<'_>,
    act: Activation,
    totals: &[[&mut Totals; 2]],
) {
    with_activation!(act, f => {
        let value = Pairs { totals, f: Gated(f) };
        isa.run(Write { panels: totals.len(), place, add: false, value });
    });
}

/// The half of a panel in which a row is.
#[inline(always)]
fn half(row: usize) -> usize {
    row % PANEL / LANES
}

/// What is written.
trait Value {
    /// Eight outputs of the token `i` of those that are written. They start at `row` of the matrix, which is the first or
    /// the ninth of the panel `panel` of those that are written.
    fn eight<S: Simd>(&self, s: S, i: usize, panel: usize, row: usize) -> S::F;
}

struct Sums<'a, 't> {
    totals: &'a [&'t mut Totals],
    bias: Option<&'a [f32]>,
}

impl Value for Sums<'_, '_> {
    #[inline(always)]
    fn eight<S: Simd>(&self, s: S, i: usize, panel: usize, row: usize) -> S::F {
        let total = s.load(&self.totals[panel][i].as_chunks().0[half(row)]);
        match self.bias {
            None => total,
            Some(bias) => {
                let bias = &bias[row..];
                s.add(total, s.load_some(&bias[..LANES.min(bias.len())], 0.0))
            }
        }
    }
}

struct Pairs<'a, 't, B> {
    totals: &'a [[&'t mut Totals; 2]],
    f: B,
}

impl<B: Binary> Value for Pairs<'_, '_, B> {
    #[inline(always)]
    fn eight<S: Simd>(&self, s: S, i: usize, panel: usize, row: usize) -> S::F {
        let [x, y] = &self.totals[panel];
        let (x, y) = (&x[i].as_chunks().0[half(row)], &y[i].as_chunks().0[half(row)]);
        self.f.apply(s, s.load(x), s.load(y))
    }
}

struct Write<'a, V> {
    place: Place<'a>,
    panels: usize,
    add: bool,
    value: V,
}

impl<V: Value> Kernel for Write<'_, V> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.place.tokens.len();
        for first in (0..n).step_by(TOKENS) {
            for panel in 0..self.panels {
                for i in first..n.min(first + TOKENS) {
                    self.write(s, panel, i);
                }
            }
        }
    }
}

impl<V: Value> Write<'_, V> {
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, panel: usize, i: usize) {
        let Place { out, rows, panels, tokens } = &self.place;
        let row = panels.get(panel) * PANEL;
        let at = (tokens.start + i) * rows + row;
        // SAFETY: the caller's promise.
        let out = unsafe { out.slice(at, PANEL.min(rows - row)) };
        // Nearly all panels are whole, and then nothing of the loop is left.
        if let Ok(out) = <&mut [f32; PANEL]>::try_from(&mut *out) {
            for (half, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                self.write_eight(s, i, panel, row + half * LANES, out);
            }
            return;
        }
        let (halves, rest) = out.as_chunks_mut();
        for (half, out) in halves.iter_mut().enumerate() {
            self.write_eight(s, i, panel, row + half * LANES, out);
        }
        if !rest.is_empty() {
            let values = self.value.eight(s, i, panel, row + halves.len() * LANES);
            let before = s.load_some(rest, 0.0);
            let values = if self.add { s.add(before, values) } else { values };
            s.store_some(values, rest);
        }
    }

    #[inline(always)]
    fn write_eight<S: Simd>(
        &self,
        s: S,
        i: usize,
        panel: usize,
        row: usize,
        out: &mut [f32; LANES],
    ) {
        let value = self.value.eight(s, i, panel, row);
        s.store(if self.add { s.add(s.load(out), value) } else { value }, out);
    }
}
