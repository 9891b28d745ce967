//! The cache: all mutable state of one sequence.
//!
//! A cache belongs to the model that made it. It grows in blocks as tokens pass, rolls where attention slides (its
//! memory is then bounded by the window), can be cut back to an earlier length, and can be forked: a fork shares
//! the blocks of the common prefix and copies only what it changes.

use std::any::Any;

use crate::error::Result;
use crate::nn::graph::{Graph, Logits, Rows, Sequence};
use crate::ops::{KvFormat, Ops};

/// Keys, values and buffers of one sequence.
pub struct KvCache {
    pub(crate) state: Box<dyn State>,
    /// Which model made it.
    pub(crate) owner: usize,
}

impl KvCache {
    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.len()
    }

    /// Whether nothing is in the cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of keys, values and states in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state.bytes()
    }

    /// Forgets every token from `len` on.
    ///
    /// `false` if a sliding window has moved past what the earlier tokens need, or the model has recurrent layers,
    /// which only remember what the last token left: everything is forgotten then, and the tokens must pass again.
    pub fn truncate(&mut self, len: usize) -> bool {
        self.state.truncate(len)
    }

    /// A second cache with the same content, which shares memory with this one until one of them changes.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { state: self.state.fork(), owner: self.owner }
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KvCache({} tokens, {} bytes)", self.len(), self.bytes())
    }
}

/// A [`Sequence`] of any device.
pub(crate) trait State: Any + Send {
    fn len(&self) -> usize;
    fn bytes(&self) -> u64;
    fn truncate(&mut self, len: usize) -> bool;
    fn fork(&self) -> Box<dyn State>;
}

impl<D: Ops> State for Sequence<D> {
    fn len(&self) -> usize {
        self.len()
    }

    fn bytes(&self) -> u64 {
        self.kv_bytes()
    }

    fn truncate(&mut self, len: usize) -> bool {
        self.truncate(len)
    }

    fn fork(&self) -> Box<dyn State> {
        Box::new(self.fork())
    }
}

/// A [`Graph`] of any device.
pub(crate) trait Runtime: Send + Sync {
    fn sequence(&self, kv: KvFormat) -> Result<Box<dyn State>>;
    fn forward(
        &self,
        ids: &[u32],
        state: &mut dyn State,
        rows: Rows,
        logits: &mut Logits,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()>;
}

impl<D: Ops> Runtime for Graph<D> {
    fn sequence(&self, kv: KvFormat) -> Result<Box<dyn State>> {
        Ok(Box::new(self.sequence(kv)?))
    }

    fn forward(
        &self,
        ids: &[u32],
        state: &mut dyn State,
        rows: Rows,
        logits: &mut Logits,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        let state: &mut dyn Any = state;
        let Some(sequence) = state.downcast_mut::<Sequence<D>>() else {
            return Err(crate::Error::bad_input(
                "the cache belongs to another device, expected one made by this model",
            ));
        };
        self.forward(ids, sequence, rows, logits, go_on)
    }
}
