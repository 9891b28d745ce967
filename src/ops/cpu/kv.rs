//! Keys and values in main memory: blocks of positions, shared between forks, dropped when a window has passed.
//!
//! ```text
//! window 300, 700 tokens, blocks of 128:   [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ]
//! the next token, 700, sees 401..=700:               gone   └ first   └ being filled
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use half::f16;
use tramontane_kernels::Isa;
use tramontane_kernels::cpu::attention::{BLOCK, KvBlock, KvMut, store_kv};

use crate::error::Result;
use crate::ops::{Kv, KvFormat, KvShape};

/// The keys and values of one layer and one sequence.
#[derive(Clone)]
pub struct CpuKv {
    shape: KvShape,
    /// Number of the first block that is still there.
    first: usize,
    blocks: VecDeque<Arc<Block>>,
}

/// [`BLOCK`] positions: `[n_kv_heads, BLOCK, k_dim]` keys and `[n_kv_heads, BLOCK, v_dim]` values.
#[derive(Clone)]
struct Block {
    k: Elements,
    v: Elements,
}

#[derive(Clone)]
enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Elements {
    fn new(len: usize, format: KvFormat) -> Self {
        match format {
            KvFormat::F32 => Self::F32(vec![0.0; len]),
            KvFormat::Auto | KvFormat::F16 => Self::F16(vec![f16::ZERO; len]),
        }
    }

    fn view(&self) -> tramontane_kernels::cpu::attention::Kv<'_> {
        match self {
            Self::F32(values) => tramontane_kernels::cpu::attention::Kv::F32(values),
            Self::F16(values) => tramontane_kernels::cpu::attention::Kv::F16(values),
        }
    }

    fn view_mut(&mut self) -> KvMut<'_> {
        match self {
            Self::F32(values) => KvMut::F32(values),
            Self::F16(values) => KvMut::F16(values),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::F16(values) => size_of_val(values.as_slice()),
        }
    }
}

impl CpuKv {
    pub(super) fn new(shape: KvShape) -> Self {
        Self { shape, first: 0, blocks: VecDeque::new() }
    }

    /// Position of the first element of the first block.
    pub(super) fn first_position(&self) -> usize {
        self.first * BLOCK
    }

    /// The blocks, for the kernel.
    pub(super) fn blocks(&self) -> Vec<KvBlock<'_>> {
        self.blocks.iter().map(|b| KvBlock { k: b.k.view(), v: b.v.view() }).collect()
    }

    /// Stores `n` rows of keys and values from position `start` on.
    pub(super) fn store(
        &mut self,
        isa: Isa,
        k: &[f32],
        v: &[f32],
        n: usize,
        start: usize,
    ) -> Result<()> {
        let KvShape { n_kv_heads, k_dim, v_dim, format, .. } = self.shape;
        let mut done = 0;
        while done < n {
            let (number, at) = ((start + done) / BLOCK, (start + done) % BLOCK);
            let count = (BLOCK - at).min(n - done);
            while self.first + self.blocks.len() <= number {
                let elements = |dim| Elements::new(n_kv_heads * dim * BLOCK, format);
                let block = Block { k: elements(k_dim), v: elements(v_dim) };
                self.blocks.push_back(Arc::new(block));
            }
            // A block that a fork still uses is copied first.
            let block = Arc::make_mut(&mut self.blocks[number - self.first]);
            let rows = |dim| done * n_kv_heads * dim..(done + count) * n_kv_heads * dim;
            store_kv(isa, block.k.view_mut(), n_kv_heads, k_dim, at, &k[rows(k_dim)]);
            store_kv(isa, block.v.view_mut(), n_kv_heads, v_dim, at, &v[rows(v_dim)]);
            done += count;
        }
        Ok(())
    }

    /// First position that a token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

impl Kv for CpuKv {
    fn truncate(&mut self, len: usize) -> bool {
        if len == 0 {
            (self.first, self.blocks) = (0, VecDeque::new());
            return true;
        }
        if self.first_seen(len) < self.first_position() {
            return false;
        }
        self.blocks.truncate(len.div_ceil(BLOCK).saturating_sub(self.first));
        true
    }

    fn forget_unseen(&mut self, len: usize) {
        let first = self.first_seen(len) / BLOCK;
        while self.first < first && self.blocks.pop_front().is_some() {
            self.first += 1;
        }
    }

    fn bytes(&self) -> u64 {
        self.blocks.iter().map(|b| (b.k.bytes() + b.v.bytes()) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(window: Option<usize>, len: usize) -> CpuKv {
        let format = KvFormat::F16;
        let mut kv = CpuKv::new(KvShape { n_kv_heads: 1, k_dim: 2, v_dim: 2, window, format });
        for position in 0..len {
            let row = [position as f32; 2];
            kv.store(Isa::portable(), &row, &row, 1, position).unwrap();
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
        kv.store(Isa::portable(), &[-1.0; 2], &[-1.0; 2], 1, BLOCK).unwrap();
        let Elements::F16(k) = &fork.blocks[1].k else { panic!("f16 was asked for") };
        assert_eq!(k[0].to_f32(), BLOCK as f32);
        assert!(Arc::ptr_eq(&kv.blocks[0], &fork.blocks[0]));
    }
}
