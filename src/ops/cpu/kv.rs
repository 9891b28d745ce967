//! Keys and values in main memory: blocks of positions, shared between forks, dropped when a window has passed.
//!
//! ```text
//! window 300, 700 tokens, blocks of 128:   [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ]
//! the next token, 700, sees 401..=700:               gone   └ first   └ being filled
//! ```

use std::sync::Arc;

use tramontane_kernels::cpu::attention::{BLOCK, KvBlock, KvFormat as Stored, KvShape as Shape};
use tramontane_kernels::memory::{OutOfMemory, Recycler};
use tramontane_kernels::{Isa, Pool};

use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Kv, KvFormat, KvShape};

/// The keys and values of one layer and one sequence.
#[derive(Clone)]
pub struct CpuKv {
    shape: Shape,
    window: Option<usize>,
    /// Number of the first block that is still there.
    first: usize,
    blocks: Vec<Arc<KvBlock>>,
    memory: Recycler,
}

/// How the kernels call a shape.
fn stored(shape: KvShape) -> Shape {
    let KvShape { n_kv_heads, k_dim, v_dim, window: _, format } = shape;
    let format = match format {
        KvFormat::F32 => Stored::F32,
        KvFormat::Auto | KvFormat::F16 => Stored::F16,
        KvFormat::Q8 => Stored::Q8,
    };
    Shape { n_kv_heads, k_dim, v_dim, format }
}

impl KvShape {
    /// Bytes of the keys and values of one position, with their scales where the format has any.
    #[must_use]
    pub fn position_bytes(self) -> u64 {
        (stored(self).block_bytes() / BLOCK) as u64
    }
}

impl CpuKv {
    /// No keys and values yet; their blocks will lie in `memory`.
    pub(super) fn new(shape: KvShape, memory: Recycler) -> Self {
        Self { shape: stored(shape), window: shape.window, first: 0, blocks: Vec::new(), memory }
    }

    /// Position of the first element of the first block.
    pub(super) fn first_position(&self) -> usize {
        self.first * BLOCK
    }

    /// The blocks, for the kernel.
    pub(super) fn blocks(&self) -> &[Arc<KvBlock>] {
        &self.blocks
    }

    /// Stores `n` rows of keys and values from position `start` on.
    pub(super) fn store(
        &mut self,
        isa: Isa,
        pool: &Pool,
        k: &[f32],
        v: &[f32],
        n: usize,
        start: usize,
    ) -> Result<()> {
        let Shape { n_kv_heads, k_dim, v_dim, .. } = self.shape;
        let mut done = 0;
        while done < n {
            let (number, at) = ((start + done) / BLOCK, (start + done) % BLOCK);
            let count = (BLOCK - at).min(n - done);
            while self.first + self.blocks.len() <= number {
                let block = KvBlock::new(self.shape, &self.memory).map_err(no_memory)?;
                self.blocks.push(Arc::new(block));
            }
            let rows = |dim| done * n_kv_heads * dim..(done + count) * n_kv_heads * dim;
            let (k, v) = (&k[rows(k_dim)], &v[rows(v_dim)]);
            let block = &mut self.blocks[number - self.first];
            if let Some(block) = Arc::get_mut(block) {
                block.store(isa, pool, at, k, v);
            } else {
                // A fork still uses it.
                let mut copy = block.try_clone().map_err(no_memory)?;
                copy.store(isa, pool, at, k, v);
                *block = Arc::new(copy);
            }
            done += count;
        }
        Ok(())
    }

    /// First position that a token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

impl Kv for CpuKv {
    fn truncate(&mut self, len: usize) -> bool {
        if len == 0 {
            (self.first, self.blocks) = (0, Vec::new());
            return true;
        }
        if self.first_seen(len) < self.first_position() {
            return false;
        }
        self.blocks.truncate(len.div_ceil(BLOCK).saturating_sub(self.first));
        true
    }

    fn forget_unseen(&mut self, len: usize) {
        let gone = (self.first_seen(len) / BLOCK).saturating_sub(self.first).min(self.blocks.len());
        self.blocks.drain(..gone);
        self.first += gone;
    }

    fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.bytes() as u64).sum()
    }
}

fn no_memory(e: OutOfMemory) -> Error {
    let what = format!("{} bytes of memory cannot be had for keys and values", e.bytes);
    Error::new(ErrorKind::NoMemory, what).hint("a smaller context (--ctx-size), or --kv q8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(window: Option<usize>, len: usize) -> CpuKv {
        let format = KvFormat::F16;
        let shape = KvShape { n_kv_heads: 1, k_dim: 2, v_dim: 2, window, format };
        let pool = Pool::new(1);
        let mut kv = CpuKv::new(shape, Recycler::new());
        for position in 0..len {
            let row = [position as f32; 2];
            kv.store(Isa::portable(), &pool, &row, &row, 1, position).unwrap();
            kv.forget_unseen(position + 1);
        }
        kv
    }

    #[test]
    fn memory_is_bounded_by_the_window() {
        let block = (2 * BLOCK * 2 * 2) as u64;
        assert_eq!(filled(None, 10 * BLOCK).bytes(), 10 * block);
        assert!(filled(Some(100), 10 * BLOCK).bytes() <= 2 * block);
    }

    #[test]
    fn truncation_fails_where_the_window_has_passed() {
        let mut kv = filled(Some(100), 5 * BLOCK);
        assert!(kv.truncate(5 * BLOCK - 1));
        assert!(!kv.truncate(BLOCK));
        assert!(kv.truncate(0));
        assert_eq!(kv.bytes(), 0);
    }

    #[test]
    fn a_fork_keeps_its_content_when_the_other_goes_on() {
        let mut kv = filled(None, BLOCK + 3);
        let fork = kv.clone();
        kv.truncate(BLOCK);
        kv.store(Isa::portable(), &Pool::new(1), &[-1.0; 2], &[-1.0; 2], 1, BLOCK).unwrap();
        assert_eq!(fork.blocks[1].key(0, 0, 0), BLOCK as f32);
        assert!(Arc::ptr_eq(&kv.blocks[0], &fork.blocks[0]));
    }
}
