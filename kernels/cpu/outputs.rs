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

/// Where outputs belong: some rows of some tokens.
pub(super) struct Place<'a> {
    /// `[n, rows]`.
    pub(super) out: SharedMut<'a, f32>,
    pub(super) rows: usize,
    /// The first row.
    pub(super) row: usize,
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
    let bias = bias.map(|bias| &bias[place.row..]);
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

/// What is written.
trait Value {
    /// Eight outputs of the token `i` of those that are written: the first or second half of a panel.
    fn eight<S: Simd>(&self, s: S, panel: usize, i: usize, half: usize) -> S::F;
}

struct Sums<'a, 't> {
    totals: &'a [&'t mut Totals],
    bias: Option<&'a [f32]>,
}

impl Value for Sums<'_, '_> {
    #[inline(always)]
    fn eight<S: Simd>(&self, s: S, panel: usize, i: usize, half: usize) -> S::F {
        let total = s.load(&self.totals[panel][i].as_chunks().0[half]);
        match self.bias {
            None => total,
            Some(bias) => {
                let bias = &bias[panel * PANEL + half * LANES..];
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
    fn eight<S: Simd>(&self, s: S, panel: usize, i: usize, half: usize) -> S::F {
        let [x, y] = &self.totals[panel];
        let (x, y) = (&x[i].as_chunks().0[half], &y[i].as_chunks().0[half]);
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
        let Place { out, rows, row, tokens } = &self.place;
        let row = row + panel * PANEL;
        let at = (tokens.start + i) * rows + row;
        // SAFETY: the caller's promise.
        let out = unsafe { out.slice(at, PANEL.min(rows - row)) };
        let (halves, rest) = out.as_chunks_mut::<LANES>();
        for (half, out) in halves.iter_mut().enumerate() {
            let value = self.value.eight(s, panel, i, half);
            let value = if self.add { s.add(s.load(out), value) } else { value };
            s.store(value, out);
        }
        if !rest.is_empty() {
            let values = self.value.eight(s, panel, i, halves.len());
            let before = s.load_some(rest, 0.0);
            let values = if self.add { s.add(before, values) } else { values };
            s.store_some(values, rest);
        }
    }
}
