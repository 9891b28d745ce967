//! Output slices that several threads fill at once, each its own elements.

use std::marker::PhantomData;

/// A mutable slice that the parts of a parallel region write to, each at places that no other part touches.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is through `slice`, whose caller promises that no two threads touch the same elements.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements from `at` to `at + len`.
    ///
    /// # Safety
    /// While the returned slice lives, no other slice of these elements may be made.
    ///
    /// # Panics
    /// When the range leaves the slice.
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &'a mut [T] {
        assert!(
            at <= self.len && len <= self.len - at,
            "a part of a kernel writes outside of its output"
        );
        // SAFETY: inside the slice that `new` borrowed for `'a`; the caller promises that it is not shared.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
