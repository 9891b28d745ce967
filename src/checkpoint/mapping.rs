//! Bytes that several tensors share without copying: a mapped file, a buffer, or the program itself.
//!
//! This is the only place of the project that maps a file.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A range of shared bytes: cheap to clone, and valid as long as any clone lives.
///
/// ```
/// use tramontane::checkpoint::Bytes;
/// let all = Bytes::from(vec![1, 2, 3, 4]);
/// let part = all.slice(1..3).expect("the range is inside");
/// drop(all);
/// assert_eq!(&*part, [2, 3]);
/// ```
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Static(&'static [u8]),
    Heap(Arc<Vec<u8>>),
    Mapped(Arc<Mmap>),
}

impl Owner {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Heap(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// Maps `file`, which must not be empty; `path` is for the error.
    ///
    /// # Errors
    ///
    /// If the operating system refuses the mapping.
    #[expect(unsafe_code, reason = "weights are mapped, not copied")]
    pub(super) fn map(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the mapping is read-only and no reference outlives it. The bytes can only change if another
        // process writes to the weight file meanwhile; they are plain numbers that are never trusted: ranges
        // and shapes come from a header that was copied out. A file that is cut while it is mapped ends the
        // process with SIGBUS, as the documentation of `Checkpoint` says.
        let map = unsafe { Mmap::map(file) }.map_err(|e| Error::io(path, e))?;
        // A hint: where the file system can, what is read from now on comes in huge pages, which are read faster.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let range = 0..map.len();
        Ok(Self { owner: Owner::Mapped(Arc::new(map)), range })
    }

    /// The bytes `range` of these bytes, or `None` if they do not hold it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start;
        Some(Self { owner: self.owner.clone(), range: start + range.start..start + range.end })
    }

    /// Whether the bytes belong to a mapped file.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped(_))
    }

    /// Tells the operating system that mapped pages of this range are not needed now.
    ///
    /// A hint: the bytes stay readable, and are read from the file again when they are touched.
    #[cfg_attr(unix, expect(unsafe_code, reason = "the advice drops pages"))]
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            // SAFETY: the mapping is shared, read-only and backed by a file, so a dropped page comes back with
            // the same content at the next access.
            let hint = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    self.range.start,
                    self.range.len(),
                )
            };
            // A refused hint changes nothing but the memory in use.
            drop(hint);
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // Every constructor keeps the range inside the owner's bytes.
        &self.owner.bytes()[self.range.clone()]
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Owner::Heap(Arc::new(bytes)), range }
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self { owner: Owner::Static(bytes), range: 0..bytes.len() }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_inside() {
        let bytes = Bytes::from(&b"abcdef"[..]);
        let middle = bytes.slice(2..5).unwrap();
        assert_eq!(&*middle, b"cde");
        assert_eq!(&*middle.slice(1..2).unwrap(), b"d");
        assert!(middle.slice(1..4).is_none());
        assert!(bytes.slice(7..7).is_none());
        let (start, end) = (3, 2);
        assert!(bytes.slice(start..end).is_none());
        assert!(bytes.slice(6..6).unwrap().is_empty());
    }

    #[test]
    fn bytes_may_go_to_other_threads() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Bytes>();
    }
}
