//! Memory for weights and caches: zeroed, aligned to 2 MiB, with huge pages asked for.
//!
//! A decoded token reads every weight once, so address translation is paid for every 4 KiB page of them; with pages of
//! 2 MiB the same machine reads a quarter faster (31 instead of 25 GB/s where this was measured, more under load).

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::{bf16, f16};

use crate::platform::Mapping;

/// Blocks begin at multiples of this: a cache line.
pub(crate) const ALIGN: usize = 64;

/// Small blocks share mappings of this size.
const CHUNK: usize = 64 << 20;

/// The system has no memory left for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The bytes that were asked for.
    pub bytes: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for {} bytes", self.bytes)
    }
}

impl std::error::Error for OutOfMemory {}

/// Hands out blocks of memory; a block lives as long as it is held, whether the arena does or not.
#[derive(Default)]
pub struct Arena {
    chunk: Option<Arc<Mapping>>,
    used: usize,
}

/// A piece of zeroed memory of its own.
pub struct Block {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Arena {
    /// An arena without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory for `len` bytes, all zero.
    ///
    /// # Errors
    /// When the system has none.
    pub fn take(&mut self, len: usize) -> Result<Block, OutOfMemory> {
        let full = || OutOfMemory { bytes: len };
        if len > CHUNK / 4 {
            // Large ones get a mapping of their own, so that nothing is left over in the shared ones.
            let mapping = Arc::new(Mapping::new(len).ok_or_else(full)?);
            return Ok(Block { mapping, start: 0, len });
        }
        let chunk = match self.chunk.take() {
            Some(chunk) if len <= chunk.len() - self.used => chunk,
            Some(_) | None => {
                self.used = 0;
                Arc::new(Mapping::new(CHUNK).ok_or_else(full)?)
            }
        };
        self.chunk = Some(Arc::clone(&chunk));
        let start = self.used;
        self.used += len.next_multiple_of(ALIGN);
        Ok(Block { mapping: chunk, start, len })
    }
}

impl Block {
    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: inside the mapping, and no other block has these bytes: the arena hands out each range once.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start().add(self.start), self.len) }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as for `bytes_mut`; a block is not `Clone`, so nobody writes while this is borrowed.
        unsafe { std::slice::from_raw_parts(self.mapping.start().add(self.start), self.len) }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len)
    }
}

/// Numbers whose bytes may be anything, zeros above all.
///
/// # Safety
/// Every pattern of bytes is a value, none of them is padding, and none needs dropping.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: a number.
unsafe impl Plain for f32 {}
// SAFETY: a number in 16 bits.
unsafe impl Plain for f16 {}
// SAFETY: two numbers in 16 bits.
unsafe impl Plain for [bf16; 2] {}
// SAFETY: a number.
unsafe impl Plain for i32 {}
// SAFETY: a number.
unsafe impl Plain for i16 {}
// SAFETY: two numbers.
unsafe impl Plain for [i16; 2] {}
// SAFETY: a number.
unsafe impl Plain for i8 {}
// SAFETY: a number.
unsafe impl Plain for u8 {}

/// What begins at a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Aligned<T>(pub(crate) T);

/// Numbers that begin at a cache line, as a vector that grows.
pub(crate) struct Lines<T> {
    lines: Vec<Aligned<[u8; ALIGN]>>,
    numbers: PhantomData<T>,
}

impl<T> Lines<T> {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self { lines: Vec::new(), numbers: PhantomData }
    }
}

impl<T: Plain> Lines<T> {
    /// Makes it at least `len` long, with zeros. It never shrinks, so in the end nothing is allocated any more.
    pub(crate) fn grow(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(ALIGN);
        if self.lines.len() < lines {
            self.lines.resize(lines, Aligned([0; ALIGN]));
        }
    }
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Plain> Deref for Lines<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let len = self.lines.len() * ALIGN / size_of::<T>();
        // SAFETY: any bytes are numbers, no number needs more alignment, and the lines hold so many of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), len) }
    }
}

impl<T: Plain> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.lines.len() * ALIGN / size_of::<T>();
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }
}

/// Memory for what comes and goes, as the blocks of caches do: pieces that are dropped are handed out again, and when
/// the last one is dropped, the system gets all of it back.
#[derive(Clone, Default)]
pub struct Recycler(Arc<Mutex<Stock>>);

#[derive(Default)]
struct Stock {
    arena: Arena,
    /// Pieces that nobody has, by length.
    free: HashMap<usize, Vec<Block>>,
    /// Pieces that somebody has.
    taken: usize,
}

impl Recycler {
    /// No memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `len` numbers, all zero.
    pub(crate) fn take<T: Plain>(&self, len: usize) -> Result<Piece<T>, OutOfMemory> {
        let bytes = len * size_of::<T>();
        let mut stock = self.stock();
        let used = stock.free.get_mut(&bytes).and_then(Vec::pop);
        let is_used = used.is_some();
        let mut block = used.map_or_else(|| stock.arena.take(bytes), Ok)?;
        stock.taken += 1;
        drop(stock);
        if is_used {
            block.bytes_mut().fill(0);
        }
        Ok(Piece { block: Some(block), len, home: self.clone(), numbers: PhantomData })
    }
}

impl fmt::Debug for Recycler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recycler({} pieces in use)", self.stock().taken)
    }
}

/// Numbers in the memory of a [`Recycler`].
pub(crate) struct Piece<T> {
    /// There until the piece is dropped.
    block: Option<Block>,
    len: usize,
    home: Recycler,
    numbers: PhantomData<T>,
}

impl<T: Plain> Piece<T> {
    /// A piece with the same content.
    pub(crate) fn try_clone(&self) -> Result<Self, OutOfMemory> {
        let mut copy = self.home.take(self.len)?;
        copy.copy_from_slice(self);
        Ok(copy)
    }
}

impl<T> Drop for Piece<T> {
    fn drop(&mut self) {
        let mut stock = self.home.stock();
        stock.taken -= 1;
        if stock.taken == 0 {
            // The piece's own block goes after the others, with this function.
            (stock.arena, stock.free) = (Arena::new(), HashMap::new());
        } else if let Some(block) = self.block.take() {
            stock.free.entry(block.len).or_default().push(block);
        }
    }
}

impl<T: Plain> Deref for Piece<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let bytes = self.block.as_ref().map_or(&[][..], Block::as_ref);
        // SAFETY: any bytes are numbers, blocks are aligned to cache lines, and `take` made it as long as that.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Piece<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes = self.block.as_mut().map_or(&mut [][..], Block::bytes_mut);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), self.len) }
    }
}

impl<T> fmt::Debug for Piece<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({} numbers)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_pieces_are_handed_out_again_as_zeros() {
        let memory = Recycler::new();
        let (mut a, b) = (memory.take::<f32>(100).unwrap(), memory.take::<f16>(7).unwrap());
        a.fill(3.0);
        let copy = a.try_clone().unwrap();
        let place = a.as_ptr();
        drop(a);
        assert_eq!((copy.len(), copy[99], b.len(), b[6]), (100, 3.0, 7, f16::ZERO));
        let again = memory.take::<i8>(400).unwrap();
        assert_eq!(again.as_ptr().cast(), place, "as many bytes: the same memory");
        assert!(again.iter().all(|&x| x == 0));
        drop((again, b, copy));
        let stock = memory.stock();
        assert!(stock.taken == 0 && stock.free.is_empty() && stock.arena.chunk.is_none());
    }

    #[test]
    fn more_numbers_than_there_can_be_are_an_error() {
        assert!(Recycler::new().take::<i8>(usize::MAX / 2).is_err());
    }

    #[test]
    fn blocks_are_zeroed_apart_and_outlive_the_arena() {
        let mut arena = Arena::new();
        let sizes = [0, 1, 100, 5000, CHUNK / 4, CHUNK / 4, CHUNK / 4, CHUNK / 4, CHUNK / 4 + 1];
        let mut blocks: Vec<_> = sizes.iter().map(|&len| arena.take(len).unwrap()).collect();
        drop(arena);
        for (i, block) in blocks.iter_mut().enumerate() {
            assert_eq!(block.as_ref().len(), sizes[i]);
            assert!(block.as_ref().iter().all(|&byte| byte == 0));
            assert!(sizes[i] == 0 || (block.as_ref().as_ptr() as usize).is_multiple_of(ALIGN));
            block.bytes_mut().fill(i as u8 + 1);
        }
        for (i, block) in blocks.iter().enumerate() {
            assert!(block.as_ref().iter().all(|&byte| byte == i as u8 + 1));
        }
    }

    #[test]
    fn more_than_there_can_be_is_an_error() {
        let bytes = usize::MAX / 2;
        assert_eq!(Arena::new().take(bytes).unwrap_err(), OutOfMemory { bytes });
    }
}
