//! Everything that asks the operating system: each with a plain answer where it cannot be asked.

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_is_between_one_and_all_hardware_threads() {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        assert!((1..=all).contains(&super::default_threads()));
    }
}
