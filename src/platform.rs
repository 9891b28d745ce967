//! What the operating system is asked for beyond the standard library, each with a plain fallback.

#[cfg(feature = "hub")]
use std::path::Path;
use std::time::Duration;

/// How many bytes may still be written where `path` is, or `None` if the system does not tell.
#[cfg(all(
    feature = "hub",
    any(target_os = "linux", target_os = "android", target_vendor = "apple")
))]
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// How many bytes may still be written where `path` is, or `None` if the system does not tell.
#[cfg(all(
    feature = "hub",
    not(any(target_os = "linux", target_os = "android", target_vendor = "apple"))
))]
pub(crate) fn free_space(_path: &Path) -> Option<u64> {
    None
}

/// The time that this thread has kept a processor busy.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
#[expect(unsafe_code, reason = "a system call")]
pub(crate) fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for one `timespec`, which is all that the call writes.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0;
    match (failed, u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) {
        (false, Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos),
        _ => Duration::ZERO,
    }
}

/// The time that has passed, where the system does not tell that of a thread.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(crate) fn thread_time() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_time_of_a_thread_grows_with_its_work() {
        let before = super::thread_time();
        let mut sum = 0u64;
        while super::thread_time() == before {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        assert!(super::thread_time() > before);
    }

    #[test]
    #[cfg(all(feature = "hub", target_os = "linux"))]
    fn there_is_some_space_and_less_than_all() {
        let free = super::free_space(std::path::Path::new("/")).unwrap();
        assert!(free < 1 << 60);
        assert_eq!(super::free_space(std::path::Path::new("/no/such/folder")), None);
    }
}
