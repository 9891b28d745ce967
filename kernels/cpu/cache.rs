//! The cache of keys and values: how attention reads it.
//!
//! A block holds [`BLOCK`] positions of one layer. The keys of a head lie in panels of [`KEYS`] positions, element
//! after element with the positions side by side, so that a query meets 16 keys at a time and no product has to be
//! summed across lanes. The values of a head lie row after row.
//!
//! In [`KvFormat::Q8`] a key has a scale for each [`GROUP`] elements, since single elements of rotated keys can be large, and
//! a value has one. What is multiplied and summed by one instruction lies side by side: two elements of a key, and the same
//! element of the values of two positions.

use std::ops::Range;

use half::f16;

use super::elementwise::Narrow;
use super::functions::largest_magnitude;
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Simd};
use crate::memory::{OutOfMemory, Piece, Recycler};
use crate::{Isa, Pool};

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
#[derive(Debug)]
pub struct KvBlock {
    shape: KvShape,
    pub(crate) keys: Elements,
    pub(crate) values: Elements,
}

/// The keys or the values of a block.
#[derive(Debug)]
pub(crate) enum Elements {
    F32(Piece<f32>),
    F16(Piece<f16>),
    Q8 {
        /// Of keys `[n_kv_heads, panels, pairs of elements, KEYS, 2]`, of values `[n_kv_heads, BLOCK / 2, v_dim, 2]`.
        values: Piece<i8>,
        /// Of keys `[n_kv_heads, panels, groups, KEYS]`, of values `[n_kv_heads, BLOCK]`.
        scales: Piece<f32>,
    },
}

impl Elements {
    fn new(
        memory: &Recycler,
        format: KvFormat,
        len: usize,
        n_scales: usize,
    ) -> Result<Self, OutOfMemory> {
        Ok(match format {
            KvFormat::F32 => Self::F32(memory.take(len)?),
            KvFormat::F16 => Self::F16(memory.take(len)?),
            KvFormat::Q8 => Self::Q8 { values: memory.take(len)?, scales: memory.take(n_scales)? },
        })
    }

    fn try_clone(&self) -> Result<Self, OutOfMemory> {
        Ok(match self {
            Self::F32(values) => Self::F32(values.try_clone()?),
            Self::F16(values) => Self::F16(values.try_clone()?),
            Self::Q8 { values, scales } => {
                Self::Q8 { values: values.try_clone()?, scales: scales.try_clone()? }
            }
        })
    }

    /// The elements, for several threads to fill.
    fn places(&mut self) -> Places<'_> {
        match self {
            Self::F32(values) => Places::F32(SharedMut::new(values)),
            Self::F16(values) => Places::F16(SharedMut::new(values)),
            Self::Q8 { values, scales } => {
                Places::Q8 { values: SharedMut::new(values), scales: SharedMut::new(scales) }
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&**values),
            Self::F16(values) => size_of_val(&**values),
            Self::Q8 { values, scales } => values.len() + size_of_val(&**scales),
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
        let elements: usize = self.head_lens().into_iter().sum();
        let scales: usize = self.head_scales().into_iter().sum();
        self.n_kv_heads
            * match self.format {
                KvFormat::F32 => 4 * elements,
                KvFormat::F16 => 2 * elements,
                KvFormat::Q8 => elements + 4 * scales,
            }
    }

    /// Elements that a key takes: in 8 bits, the last pair of an odd number is a whole one.
    pub(super) fn key_len(&self) -> usize {
        match self.format {
            KvFormat::F32 | KvFormat::F16 => self.k_dim,
            KvFormat::Q8 => self.k_dim.next_multiple_of(2),
        }
    }

    /// Where element `d` of the key of `head` at `place` is, and its scale.
    fn key(&self, head: usize, place: usize, d: usize) -> (usize, usize) {
        let (panel, lane) = (head * (BLOCK / KEYS) + place / KEYS, place % KEYS);
        let group = panel * self.k_dim.div_ceil(GROUP) + d / GROUP;
        let first = panel * self.key_len() * KEYS;
        let at = match self.format {
            KvFormat::F32 | KvFormat::F16 => d * KEYS + lane,
            KvFormat::Q8 => (d / 2 * KEYS + lane) * 2 + d % 2,
        };
        (first + at, group * KEYS + lane)
    }

    /// Where element `d` of the value of `head` at `place` is, and its scale.
    fn value(&self, head: usize, place: usize, d: usize) -> (usize, usize) {
        let row = head * BLOCK + place;
        let at = match self.format {
            KvFormat::F32 | KvFormat::F16 => row * self.v_dim + d,
            KvFormat::Q8 => (row / 2 * self.v_dim + d) * 2 + row % 2,
        };
        (at, row)
    }

    /// Elements of the keys of a head, and of its values.
    fn head_lens(&self) -> [usize; 2] {
        [self.key_len(), self.v_dim].map(|len| BLOCK * len)
    }

    /// In 8 bits, scales of the keys of a head, and of its values.
    fn head_scales(&self) -> [usize; 2] {
        [self.k_dim.div_ceil(GROUP), 1].map(|len| BLOCK * len)
    }

    /// The places of the keys of a head, and of its values.
    pub(super) fn of_head(&self, head: usize) -> [Range<usize>; 2] {
        self.head_lens().map(|len| head * len..(head + 1) * len)
    }

    /// The places of the scales of the keys of a head, and of its values.
    pub(super) fn scales_of_head(&self, head: usize) -> [Range<usize>; 2] {
        self.head_scales().map(|len| head * len..(head + 1) * len)
    }
}

impl KvBlock {
    /// A block without content.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(shape: KvShape, memory: &Recycler) -> Result<Self, OutOfMemory> {
        let [keys, values] = shape.head_lens().map(|len| shape.n_kv_heads * len);
        let [k_scales, v_scales] = shape.head_scales().map(|len| shape.n_kv_heads * len);
        Ok(Self {
            shape,
            keys: Elements::new(memory, shape.format, keys, k_scales)?,
            values: Elements::new(memory, shape.format, values, v_scales)?,
        })
    }

    /// A block with the same content, in memory of the same kind.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        let (keys, values) = (self.keys.try_clone()?, self.values.try_clone()?);
        Ok(Self { shape: self.shape, keys, values })
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
        let (index, scale) = self.shape.value(head, place, d);
        self.values.get(index, scale)
    }

    /// Writes the keys and values of tokens, `[n, n_kv_heads, k_dim]` and `[n, n_kv_heads, v_dim]`, from place `at` on.
    ///
    /// # Panics
    /// When the tokens leave the block, or lengths do not fit together.
    pub fn store(&mut self, isa: Isa, pool: &Pool, at: usize, keys: &[f32], values: &[f32]) {
        let shape @ KvShape { n_kv_heads, k_dim, v_dim, .. } = self.shape;
        let n = keys.len().checked_div(n_kv_heads * k_dim).unwrap_or(0);
        let lengths = (n * n_kv_heads * k_dim, n * n_kv_heads * v_dim);
        assert_eq!((keys.len(), values.len()), lengths, "keys and values to store");
        assert!(at + n <= BLOCK, "{n} tokens at place {at} of a block of {BLOCK}");
        let (k, v) = (self.keys.places(), self.values.places());
        let store = |head| isa.run(Store { shape, at, head, keys, values, k: &k, v: &v });
        // A region costs more than to store a few heads.
        if keys.len() + values.len() < 1 << 11 {
            (0..n_kv_heads).for_each(store);
        } else {
            pool.run(n_kv_heads, &store);
        }
    }
}

/// The keys or the values of a block, for several threads to fill.
enum Places<'a> {
    F32(SharedMut<'a, f32>),
    F16(SharedMut<'a, f16>),
    Q8 { values: SharedMut<'a, i8>, scales: SharedMut<'a, f32> },
}

/// Writes the keys and values of one head.
struct Store<'a> {
    shape: KvShape,
    at: usize,
    head: usize,
    /// Of all heads.
    keys: &'a [f32],
    values: &'a [f32],
    k: &'a Places<'a>,
    v: &'a Places<'a>,
}

impl Kernel for Store<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let KvShape { n_kv_heads, k_dim, v_dim, .. } = self.shape;
        let tokens = self.keys.chunks_exact((n_kv_heads * k_dim).max(1)).len();
        // The elements of a key lie in as many lines, which the weights have driven out of the caches since the last
        // token. They are asked for at once: waiting for each was 2.5 % of a token's time.
        if tokens == 1 {
            self.ask(s);
        }
        for token in 0..tokens {
            let row = token * n_kv_heads + self.head;
            self.store_value(s, self.at + token, &self.values[row * v_dim..][..v_dim]);
        }
        let mut token = 0;
        while token < tokens {
            let place = self.at + token;
            let key =
                |i: usize| &self.keys[((token + i) * n_kv_heads + self.head) * k_dim..][..k_dim];
            match self.k {
                Places::F16(to) if place.is_multiple_of(LANES) && token + LANES <= tokens => {
                    self.store_keys(s, place, std::array::from_fn(key), to);
                    token += LANES;
                }
                Places::F32(_) | Places::F16(_) | Places::Q8 { .. } => {
                    self.store_key(s, place, key(0));
                    token += 1;
                }
            }
        }
    }
}

impl Store<'_> {
    /// Asks for the panel into which a key is written.
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S) {
        let (first, _) = self.shape.key(self.head, self.at - self.at % KEYS, 0);
        let len = KEYS * self.shape.key_len();
        // SAFETY: nobody else writes to this head's panel, and nothing is read here.
        let panel = unsafe {
            match self.k {
                Places::F32(to) => to.slice(first, len).align_to().1,
                Places::F16(to) => to.slice(first, len).align_to().1,
                Places::Q8 { values, .. } => values.slice(first, len).align_to().1,
            }
        };
        (0..panel.len()).step_by(64).for_each(|at| s.prefetch(panel, at));
    }

    /// Writes the keys of eight tokens side by side, as [`Self::store_key`] would one after the other.
    #[inline(always)]
    fn store_keys<S: Simd>(
        &self,
        s: S,
        place: usize,
        keys: [&[f32]; LANES],
        to: &SharedMut<'_, f16>,
    ) {
        const { assert!(KEYS.is_multiple_of(LANES)) };
        let (first, _) = self.shape.key(self.head, place, 0);
        for at in (0..keys[0].len()).step_by(LANES) {
            let mut rows = [s.splat(0.0); LANES];
            for (row, key) in rows.iter_mut().zip(keys) {
                *row = s.load_first(&key[at..]);
            }
            let columns = s.transpose(rows).into_iter().enumerate();
            for (i, column) in columns.take(keys[0].len() - at) {
                // SAFETY: each head's elements belong to one part.
                let to = unsafe { to.slice(first + (at + i) * KEYS, LANES) };
                s.store_f16(column, to.first_chunk_mut().expect("as many as lanes"));
            }
        }
    }

    #[inline(always)]
    fn store_key<S: Simd>(&self, s: S, place: usize, key: &[f32]) {
        let (first, first_scale) = self.shape.key(self.head, place, 0);
        for (i, key) in key.chunks(GROUP).enumerate() {
            let at = first + i * GROUP * KEYS;
            // SAFETY: each head's elements belong to one part.
            unsafe {
                match self.k {
                    Places::F32(to) => spread(key, to.slice(at, (key.len() - 1) * KEYS + 1), KEYS),
                    Places::F16(to) => {
                        let mut half = [f16::ZERO; GROUP];
                        Narrow { from: key, to: &mut half[..key.len()] }.run(s);
                        let to = to.slice(at, (key.len() - 1) * KEYS + 1);
                        spread(&half[..key.len()], to, KEYS);
                    }
                    Places::Q8 { values, scales } => {
                        let unit = unit_of(s, key);
                        scales.slice(first_scale + i * KEYS, 1)[0] = unit;
                        let to = values.slice(at, (key.len() - 1) / 2 * 2 * KEYS + 2);
                        for (key, to) in key.chunks(LANES).zip(to.chunks_mut(LANES * KEYS)) {
                            let eight = in_units(s, key, unit);
                            for (pair, to) in
                                eight.as_chunks().0.iter().zip(to.chunks_mut(2 * KEYS))
                            {
                                *to.first_chunk_mut::<2>().expect("room for a pair") = *pair;
                            }
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn store_value<S: Simd>(&self, s: S, place: usize, value: &[f32]) {
        let (at, scale) = self.shape.value(self.head, place, 0);
        // SAFETY: each head's elements belong to one part.
        unsafe {
            match self.v {
                Places::F32(to) => to.slice(at, value.len()).copy_from_slice(value),
                Places::F16(to) => Narrow { from: value, to: to.slice(at, value.len()) }.run(s),
                Places::Q8 { values, scales } => {
                    let unit = unit_of(s, value);
                    scales.slice(scale, 1)[0] = unit;
                    let to = values.slice(at, 2 * value.len() - 1);
                    for (value, to) in value.chunks(LANES).zip(to.chunks_mut(2 * LANES)) {
                        spread(&in_units(s, value, unit), to, 2);
                    }
                }
            }
        }
    }
}

/// Writes elements to places that are `step` apart.
#[inline(always)]
fn spread<T: Copy>(from: &[T], to: &mut [T], step: usize) {
    for (to, x) in to.iter_mut().step_by(step).zip(from) {
        *to = *x;
    }
}

/// The unit in which the largest magnitude is 127: NaN where an element is not finite.
#[inline(always)]
fn unit_of<S: Simd>(s: S, x: &[f32]) -> f32 {
    largest_magnitude(s, x) / 127.0
}

/// Up to eight numbers, rounded to whole multiples of a unit, and zeros behind them.
#[inline(always)]
fn in_units<S: Simd>(s: S, x: &[f32], unit: f32) -> [i8; LANES] {
    let mut out = [0; LANES];
    // What is divided by a zero or by NaN does not matter, but shall be the same everywhere.
    if unit != 0.0 && !unit.is_nan() {
        s.store_i8(s.div(s.load_first(x), s.splat(unit)), &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::Numbers;

    #[test]
    fn what_is_stored_is_read_back() {
        let heads = [(3, 40, 12), (3, 43, 12), (8, 128, 128)];
        let pairs = || Isa::available().into_iter().flat_map(|isa| heads.map(|head| (isa, head)));
        for (format, tolerance) in
            [(KvFormat::F32, 0.0), (KvFormat::F16, 2e-3), (KvFormat::Q8, 0.02)]
        {
            for (isa, (n_kv_heads, k_dim, v_dim)) in pairs() {
                let shape = KvShape { n_kv_heads, k_dim, v_dim, format };
                let keys = Numbers::new(1).normal(21 * n_kv_heads * k_dim);
                let values = Numbers::new(2).normal(21 * n_kv_heads * v_dim);
                let mut block = KvBlock::new(shape, &Recycler::new()).unwrap();
                block.store(isa, &Pool::new(2), 13, &keys, &values);
                let block = block.try_clone().unwrap();
                assert_eq!(block.bytes(), shape.block_bytes());
                for (row, key) in keys.chunks_exact(k_dim).enumerate() {
                    let (head, place) = (row % n_kv_heads, 13 + row / n_kv_heads);
                    let error = |(d, x): (usize, &f32)| (block.key(head, place, d) - x).abs();
                    assert!(key.iter().enumerate().all(|x| error(x) <= tolerance), "{format:?}");
                }
                for (row, value) in values.chunks_exact(v_dim).enumerate() {
                    let (head, place) = (row % n_kv_heads, 13 + row / n_kv_heads);
                    let error = |(d, x): (usize, &f32)| (block.value(head, place, d) - x).abs();
                    assert!(value.iter().enumerate().all(|x| error(x) <= tolerance), "{format:?}");
                }
                assert_eq!((block.key(0, 12, 0), block.value(2, 34, 11)), (0.0, 0.0));
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_in_eight_bits() {
        let shape = KvShape { n_kv_heads: 1, k_dim: 64, v_dim: 4, format: KvFormat::Q8 };
        for bad in [f32::NAN, f32::INFINITY] {
            let mut block = KvBlock::new(shape, &Recycler::new()).unwrap();
            let mut key = [1.0; 64];
            key[40] = bad;
            block.store(Isa::best(), &Pool::new(1), 0, &key, &[1.0, bad, 1.0, 1.0]);
            assert!(block.key(0, 0, 40).is_nan() && block.value(0, 0, 1).is_nan());
            assert!((block.key(0, 0, 3) - 1.0).abs() < 1e-6, "the other group is whole");
        }
    }
}
