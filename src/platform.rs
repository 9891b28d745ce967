//! What the operating system is asked for beyond the standard library, each with a plain fallback.

use std::path::Path;

/// How many bytes may still be written where `path` is, or `None` if the system does not tell.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// How many bytes may still be written where `path` is, or `None` if the system does not tell.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(crate) fn free_space(_path: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn there_is_some_space_and_less_than_all() {
        let free = super::free_space(std::path::Path::new("/")).unwrap();
        assert!(free < 1 << 60);
        assert_eq!(super::free_space(std::path::Path::new("/no/such/folder")), None);
    }
}
