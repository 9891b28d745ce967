//! The cache of keys and values: how attention reads it.
//!
//! A block holds [`BLOCK`] positions of one layer. The keys of a head lie in panels of [`KEYS`] positions, element
//! after element with the positions side by side, so that a query meets 16 keys at a time and no product has to be
//! summed across lanes. The values of a head lie row after row. In [`KvFormat::Q8`] a key has a scale for each
//! [`GROUP`] elements, since single elements of rotated keys can be large, and a value has one.

use std::ops::Range;

use half::f16;

use super::elementwise::f32_to_f16;
use super::math::{larger, to_i8};
use super::simd::{Kernel, Simd};
use crate::Isa;

/// Positions of a block: with heads of 128 in f16, its keys are 32 KiB for each head.
pub const BLOCK: usize = 128;

/// Positions of a panel of keys.
pub(crate) const KEYS: usize = 16;

/// Elements of a q8 key that share a scale.
pub(crate) const GROUP: usize = 32;

/// What the elements of a cache are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// 8 bits, with 32-bit scales.
    Q8,
}

/// The shape of a layer's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a key head.
    pub k_dim: usize,
    /// Width of a value head.
    pub v_dim: usize,
    /// What the elements are.
    pub format: KvFormat,
}

/// [`BLOCK`] positions of one layer.
#[derive(Clone, Debug)]
pub struct KvBlock {
    shape: KvShape,
    pub(crate) keys: Elements,
    pub(crate) values: Elements,
}

/// The keys or the values of a block.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Q8 {
        values: Vec<i8>,
        /// Of keys `[n_kv_heads, panels, groups, KEYS]`, of values `[n_kv_heads, BLOCK]`.
        scales: Vec<f32>,
    },
}

impl Elements {
    fn new(format: KvFormat, len: usize, n_scales: usize) -> Self {
        match format {
            KvFormat::F32 => Self::F32(vec![0.0; len]),
            KvFormat::F16 => Self::F16(vec![f16::ZERO; len]),
            KvFormat::Q8 => Self::Q8 { values: vec![0; len], scales: vec![0.0; n_scales] },
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::F16(values) => size_of_val(values.as_slice()),
            Self::Q8 { values, scales } => values.len() + size_of_val(scales.as_slice()),
        }
    }

    /// The bytes of a part of the elements.
    pub(super) fn bytes_of(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: numbers without padding may be read as bytes.
        unsafe {
            match self {
                Self::F32(values) => values[range].align_to().1,
                Self::F16(values) => values[range].align_to().1,
                Self::Q8 { values, .. } => values[range].align_to().1,
            }
        }
    }

    /// The element at `index`, whose scale is the one at `scale`.
    fn get(&self, index: usize, scale: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::F16(values) => values[index].to_f32(),
            Self::Q8 { values, scales } => f32::from(values[index]) * scales[scale],
        }
    }
}

impl KvShape {
    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        let (keys, values) =
            (self.n_kv_heads * BLOCK * self.k_dim, self.n_kv_heads * BLOCK * self.v_dim);
        match self.format {
            KvFormat::F32 => 4 * (keys + values),
            KvFormat::F16 => 2 * (keys + values),
            KvFormat::Q8 => {
                let scales = self.n_kv_heads * BLOCK * (self.k_dim.div_ceil(GROUP) + 1);
                keys + values + 4 * scales
            }
        }
    }

    /// Where element `d` of the key of `head` at `place` is, and its scale.
    fn key(&self, head: usize, place: usize, d: usize) -> (usize, usize) {
        let (panel, lane) = (head * (BLOCK / KEYS) + place / KEYS, place % KEYS);
        let group = panel * self.k_dim.div_ceil(GROUP) + d / GROUP;
        ((panel * self.k_dim + d) * KEYS + lane, group * KEYS + lane)
    }
}

impl KvBlock {
    /// A block without content.
    pub fn new(shape: KvShape) -> Self {
        let KvShape { n_kv_heads, k_dim, v_dim, format } = shape;
        let positions = n_kv_heads * BLOCK;
        Self {
            shape,
            keys: Elements::new(format, positions * k_dim, positions * k_dim.div_ceil(GROUP)),
            values: Elements::new(format, positions * v_dim, positions),
        }
    }

    /// Its shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Bytes of its content.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Element `d` of the key of a head at a place of the block, as it was stored: slow, for tests.
    pub fn key(&self, head: usize, place: usize, d: usize) -> f32 {
        let (index, scale) = self.shape.key(head, place, d);
        self.keys.get(index, scale)
    }

    /// Element `d` of the value of a head at a place of the block, as it was stored: slow, for tests.
    pub fn value(&self, head: usize, place: usize, d: usize) -> f32 {
        let row = head * BLOCK + place;
        self.values.get(row * self.shape.v_dim + d, row)
    }

    /// Writes the keys and values of tokens, `[n, n_kv_heads, k_dim]` and `[n, n_kv_heads, v_dim]`, from place `at` on.
    ///
    /// # Panics
    /// When the tokens leave the block, or lengths do not fit together.
    pub fn store(&mut self, isa: Isa, at: usize, keys: &[f32], values: &[f32]) {
        let shape @ KvShape { n_kv_heads, k_dim, v_dim, .. } = self.shape;
        let n = keys.len().checked_div(n_kv_heads * k_dim).unwrap_or(0);
        let lengths = (n * n_kv_heads * k_dim, n * n_kv_heads * v_dim);
        assert_eq!((keys.len(), values.len()), lengths, "keys and values to store");
        assert!(at + n <= BLOCK, "{n} tokens at place {at} of a block of {BLOCK}");
        for (row, key) in keys.chunks_exact(k_dim.max(1)).enumerate() {
            if n == 1 && row + 1 < n_kv_heads {
                let (next, _) = shape.key(row + 1, at - at % KEYS, 0);
                isa.run(Ask(self.keys.bytes_of(next..next + k_dim * KEYS)));
            }
            store_key(isa, shape, &mut self.keys, row % n_kv_heads, at + row / n_kv_heads, key);
        }
        for (row, value) in values.chunks_exact(v_dim.max(1)).enumerate() {
            let place = row % n_kv_heads * BLOCK + at + row / n_kv_heads;
            store_value(isa, &mut self.values, place, value);
        }
    }
}

/// Asks for memory that will be written here and there. The elements of a single token's key lie in as many lines, which
/// the weights have driven out of the caches since the last token: waiting for each was 2.5 % of a token's time.
struct Ask<'a>(&'a [u8]);

impl Kernel for Ask<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        (0..self.0.len()).step_by(64).for_each(|at| s.prefetch(self.0, at));
    }
}

fn store_key(
    isa: Isa,
    shape: KvShape,
    keys: &mut Elements,
    head: usize,
    place: usize,
    key: &[f32],
) {
    let (first, first_scale) = shape.key(head, place, 0);
    match keys {
        Elements::F32(to) => {
            for (to, x) in to[first..].iter_mut().step_by(KEYS).zip(key) {
                *to = *x;
            }
        }
        Elements::F16(to) => {
            let mut half = [f16::ZERO; 128];
            for (to, key) in to[first..].chunks_mut(128 * KEYS).zip(key.chunks(128)) {
                f32_to_f16(isa, key, &mut half[..key.len()]);
                for (to, x) in to.iter_mut().step_by(KEYS).zip(&half[..key.len()]) {
                    *to = *x;
                }
            }
        }
        Elements::Q8 { values, scales } => {
            let groups = values[first..].chunks_mut(GROUP * KEYS).zip(key.chunks(GROUP));
            let scales = scales[first_scale..].iter_mut().step_by(KEYS);
            for ((to, key), scale) in groups.zip(scales) {
                *scale = unit(key);
                for (to, x) in to.iter_mut().step_by(KEYS).zip(key) {
                    *to = round(*x, *scale);
                }
            }
        }
    }
}

fn store_value(isa: Isa, values: &mut Elements, place: usize, value: &[f32]) {
    let range = place * value.len()..(place + 1) * value.len();
    match values {
        Elements::F32(to) => to[range].copy_from_slice(value),
        Elements::F16(to) => f32_to_f16(isa, value, &mut to[range]),
        Elements::Q8 { values, scales } => {
            scales[place] = unit(value);
            for (to, x) in values[range].iter_mut().zip(value) {
                *to = round(*x, scales[place]);
            }
        }
    }
}

/// The unit in which the largest magnitude is 127; NaN where one is not finite.
fn unit(values: &[f32]) -> f32 {
    let top = values.iter().fold(0.0, |top, x| larger(top, x.abs()));
    if top.is_finite() { top / 127.0 } else { f32::NAN }
}

/// A number in a unit; 0 where the unit is 0 or NaN.
fn round(x: f32, unit: f32) -> i8 {
    if unit == 0.0 { 0 } else { to_i8(x / unit) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::Numbers;

    #[test]
    fn what_is_stored_is_read_back() {
        for (format, tolerance) in
            [(KvFormat::F32, 0.0), (KvFormat::F16, 2e-3), (KvFormat::Q8, 0.02)]
        {
            let shape = KvShape { n_kv_heads: 3, k_dim: 40, v_dim: 12, format };
            let (keys, values) = (Numbers::new(1).normal(5 * 120), Numbers::new(2).normal(5 * 36));
            let mut block = KvBlock::new(shape);
            block.store(Isa::best(), 13, &keys, &values);
            assert_eq!(block.bytes(), shape.block_bytes());
            for token in 0..5 {
                for head in 0..3 {
                    let key =
                        |d| block.key(head, 13 + token, d) - keys[(token * 3 + head) * 40 + d];
                    assert!((0..40).all(|d| key(d).abs() <= tolerance), "{format:?}");
                    let value =
                        |d| block.value(head, 13 + token, d) - values[(token * 3 + head) * 12 + d];
                    assert!((0..12).all(|d| value(d).abs() <= tolerance), "{format:?}");
                }
            }
            assert_eq!((block.key(0, 12, 0), block.value(2, 18, 11)), (0.0, 0.0));
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_in_eight_bits() {
        let shape = KvShape { n_kv_heads: 1, k_dim: 64, v_dim: 4, format: KvFormat::Q8 };
        for bad in [f32::NAN, f32::INFINITY] {
            let mut block = KvBlock::new(shape);
            let mut key = [1.0; 64];
            key[40] = bad;
            block.store(Isa::best(), 0, &key, &[1.0, bad, 1.0, 1.0]);
            assert!(block.key(0, 0, 40).is_nan() && block.value(0, 0, 1).is_nan());
            assert!((block.key(0, 0, 3) - 1.0).abs() < 1e-6, "the other group is whole");
        }
    }
}
