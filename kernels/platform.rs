//! Everything that asks the operating system: each with a plain answer where it cannot be asked.

use std::ptr::NonNull;

/// Threads that can compute at once without sharing a core: physical cores, as far as the process may use them
/// (affinity, and the CPU quota of its control group).
pub fn default_threads() -> usize {
    // The standard library already heeds affinity and the quota of control groups, but counts hardware threads.
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    usable.min(physical_cores().unwrap_or(usable)).max(1)
}

/// Physical cores with at least one hardware thread that this process may run on.
#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for cpu in allowed_cpus()? {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        // The hardware threads of one core all have the same list.
        cores.insert(std::fs::read_to_string(path).ok()?);
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    None
}

/// The numbers of the CPUs that this process may run on.
#[cfg(target_os = "linux")]
fn allowed_cpus() -> Option<Vec<usize>> {
    // SAFETY: an all-zero bit set is a valid value of this plain C struct.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and the size describe `set`, which the call fills.
    let status = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if status != 0 {
        return None;
    }
    let last = 8 * size_of::<libc::cpu_set_t>();
    // SAFETY: `CPU_ISSET` reads one bit of the set; the numbers stay below the size of the set.
    Some((0..last).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// The size of a huge page, to which mappings are aligned.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed memory straight from the system, aligned to huge pages.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping owns its memory, as a boxed slice does.
unsafe impl Send for Mapping {}
// SAFETY: as above; all access goes through the blocks that the arena hands out.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(target_os = "linux")]
impl Mapping {
    /// Maps `len` bytes; nothing where the system refuses.
    pub(crate) fn new(len: usize) -> Option<Self> {
        // No page that is not huge is larger than this.
        let len = len.max(1).checked_next_multiple_of(1 << 16)?;
        let wide = len.checked_add(HUGE_PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), wide, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        let skip = base.align_offset(HUGE_PAGE);
        // SAFETY: `skip` is at most `HUGE_PAGE`, so `start .. start + len` is inside the mapping; what is before
        // and after it is given back, and nobody has its address. The advice may fail: the pages are then small.
        unsafe {
            let start = base.byte_add(skip);
            if skip > 0 {
                libc::munmap(base, skip);
            }
            if skip < HUGE_PAGE {
                libc::munmap(start.byte_add(len), HUGE_PAGE - skip);
            }
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
            Some(Self { start: NonNull::new(start.cast())?, len })
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nothing borrows any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(not(target_os = "linux"))]
impl Mapping {
    /// Allocates `len` bytes; nothing where the system refuses.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let len = len.max(1);
        let layout = std::alloc::Layout::from_size_align(len, HUGE_PAGE).ok()?;
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        Some(Self { start: NonNull::new(start)?, len })
    }
}

#[cfg(not(target_os = "linux"))]
impl Drop for Mapping {
    fn drop(&mut self) {
        if let Ok(layout) = std::alloc::Layout::from_size_align(self.len, HUGE_PAGE) {
            // SAFETY: allocated by `new` with this layout.
            unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_is_between_one_and_all_hardware_threads() {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        assert!((1..=all).contains(&super::default_threads()));
    }
}
