//! Keys and values on a device: pages of positions, shared between forks, dropped when a window has passed.

use std::sync::{Arc, Mutex, PoisonError};

use tramontane_kernels::cuda::{self as kernels, CacheHeads, Cached, Element, PAGE};

use super::driver::{Gpu, Memory};
use crate::error::Result;
use crate::ops::{Kv, KvFormat, KvShape};

/// The keys and values of one layer and one sequence.
pub struct CudaKv {
    gpu: Arc<Gpu>,
    shape: KvShape,
    element: Cached,
    /// One for each [`PAGE`] positions; `None` where a window has passed.
    pages: Vec<Option<Arc<Memory>>>,
    /// The addresses of the pages on the device; `None` when they have changed.
    table: Mutex<Option<Memory>>,
}

/// The type of the elements of a cache in `format`.
fn element(format: KvFormat) -> Cached {
    match format {
        KvFormat::F32 => Cached::Float(Element::F32),
        KvFormat::Auto | KvFormat::F16 => Cached::Float(Element::F16),
        KvFormat::Q8 => Cached::Q8,
    }
}

impl Clone for CudaKv {
    fn clone(&self) -> Self {
        Self {
            gpu: self.gpu.clone(),
            shape: self.shape,
            element: self.element,
            pages: self.pages.clone(),
            table: Mutex::new(None),
        }
    }
}

impl CudaKv {
    pub(super) fn new(gpu: Arc<Gpu>, shape: KvShape) -> Self {
        let element = element(shape.format);
        Self { gpu, shape, element, pages: Vec::new(), table: Mutex::new(None) }
    }

    pub(super) fn heads(&self) -> CacheHeads {
        let KvShape { n_kv_heads, k_dim, v_dim, .. } = self.shape;
        CacheHeads { n_kv_heads, k_dim, v_dim }
    }

    pub(super) fn element(&self) -> Cached {
        self.element
    }

    fn page_bytes(&self) -> usize {
        kernels::page_bytes(self.element(), self.heads())
    }

    /// Makes room for the positions `start..end`: pages of their own, for a fork may use the old ones.
    pub(super) fn prepare(&mut self, start: usize, end: usize) -> Result<()> {
        for number in start / PAGE..end.div_ceil(PAGE) {
            if self.pages.len() <= number {
                self.pages.resize(number + 1, None);
            }
            let old = self.pages[number].take();
            let page = match old {
                Some(page) if Arc::strong_count(&page) == 1 => {
                    self.pages[number] = Some(page);
                    continue;
                }
                Some(shared) => {
                    let own = self.gpu.alloc(self.page_bytes())?;
                    self.gpu.copy(&shared, &own)?;
                    own
                }
                None => {
                    let page = self.gpu.alloc(self.page_bytes())?;
                    // Copies of a page read all of it, also what no token has written yet.
                    self.gpu.clear(&page)?;
                    page
                }
            };
            self.pages[number] = Some(Arc::new(page));
            self.changed();
        }
        Ok(())
    }

    fn changed(&mut self) {
        *self.table.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Device address of the page addresses.
    pub(super) fn table(&self) -> Result<u64> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = &*table {
            return Ok(table.address());
        }
        let addresses: Vec<u64> =
            self.pages.iter().map(|p| p.as_ref().map_or(0, |p| p.address())).collect();
        let memory = self.gpu.alloc(8 * addresses.len())?;
        self.gpu.upload(&addresses, &memory, 0)?;
        Ok(table.insert(memory).address())
    }

    /// First position that a token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

impl Kv for CudaKv {
    fn reserve(&mut self, start: usize, end: usize) -> Result<()> {
        self.prepare(start, end)?;
        self.table().map(|_| ())
    }

    fn truncate(&mut self, len: usize) -> bool {
        let kept = len.div_ceil(PAGE).min(self.pages.len());
        let first = (self.first_seen(len) / PAGE).min(kept);
        if self.pages[first..kept].iter().any(Option::is_none) {
            return false;
        }
        self.pages.truncate(kept);
        self.changed();
        true
    }

    fn forget_unseen(&mut self, len: usize) {
        let first = (self.first_seen(len) / PAGE).min(self.pages.len());
        let gone: Vec<_> = self.pages[..first].iter_mut().filter_map(Option::take).collect();
        if !gone.is_empty() {
            self.changed();
        }
    }

    fn bytes(&self) -> u64 {
        self.pages.iter().flatten().map(|page| page.bytes() as u64).sum()
    }
}
