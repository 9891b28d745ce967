//! A pool of threads for regions of a few microseconds: hundreds of them for each generated token.
//!
//! Waking a sleeping thread costs more than such a region, so the workers spin for a short while after each one, then look
//! on while they let others have the core, and go to sleep when nothing comes for longer than lies between two tokens.
//! The thread that calls [`Pool::run`] works too. A region is described by one atomic word: workers enter it only while it
//! is open and the caller leaves only when the last worker has, so a worker that wakes late delays nobody and never sees
//! a region that is over.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker keeps its core.
const SPIN: Duration = Duration::from_micros(50);

/// How long an idle worker looks for work before it sleeps: between two tokens, choosing and printing one takes some of it.
const PATIENCE: Duration = Duration::from_millis(1);

/// In the state word: a region is open.
const OPEN: u64 = 1 << 16;
/// In the state word: the low bits count the workers inside the region.
const INSIDE: u64 = OPEN - 1;
/// In the state word: one region further.
const NEXT: u64 = OPEN << 1;

/// Threads that run the parts of a kernel. Cheap to share behind an `Arc`; the threads end when it is dropped.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the thread whose region runs.
    caller: Mutex<()>,
}

/// The function of a region. The lifetime is erased: `Pool::run` keeps it alive until the region is over.
#[derive(Clone, Copy)]
struct Job {
    function: *const (dyn Fn(usize) + Sync),
    n_parts: usize,
}

struct Shared {
    /// Number of the region, whether it is open, and how many workers are inside.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// The next part that nobody has taken.
    next: AtomicUsize,
    /// What the first part that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    sleeping: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the caller while no region is open and no worker is inside, and read only by
// workers that are inside. The function it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is used only while the region is open.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool in which `n_threads` threads compute: the calling one and `n_threads - 1` new ones. Where the system
    /// refuses more threads, the pool has fewer.
    pub fn new(n_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            bed: Mutex::new(()),
            wake: Condvar::new(),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            let name = format!("kernels-{i}");
            std::thread::Builder::new().name(name).spawn(move || shared.work()).ok()
        };
        let workers = (1..n_threads.min(INSIDE as usize)).map_while(spawn).collect();
        Self { shared, workers, caller: Mutex::new(()) }
    }

    /// Threads that compute, the calling one included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(part)` once for each part below `n_parts`, on all threads, and returns when all are done.
    ///
    /// A region inside a region, and a region while another thread's runs, are run on the calling thread alone.
    ///
    /// # Panics
    /// When a part panics: after the other parts, with the first panic's message.
    pub fn run(&self, n_parts: usize, f: &(dyn Fn(usize) + Sync)) {
        if n_parts <= 1 || self.workers.is_empty() {
            return (0..n_parts).for_each(f);
        }
        let guard = match self.caller.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return (0..n_parts).for_each(f),
        };
        let panicked = self.shared.region(n_parts, f);
        drop(guard);
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its parts, so there is nothing to learn here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Opens a region, works in it, closes it, and waits for the workers that are still inside.
    fn region(&self, n_parts: usize, f: &(dyn Fn(usize) + Sync)) -> Option<Box<dyn Any + Send>> {
        type Borrowed<'a> = *const (dyn Fn(usize) + Sync + 'a);
        // SAFETY: only the lifetime changes; the pointer is not used after this function returns.
        let function = unsafe { std::mem::transmute::<Borrowed<'_>, Borrowed<'static>>(f) };
        // SAFETY: the caller's lock is held, the last region is closed and empty: nobody reads the job.
        unsafe { *self.job.get() = Some(Job { function, n_parts }) };
        self.next.store(0, SeqCst);
        let region = (self.state.load(SeqCst) & !(OPEN | INSIDE)).wrapping_add(NEXT);
        self.state.store(region | OPEN, SeqCst);
        if self.sleeping.load(SeqCst) > 0 {
            self.wake_all();
        }
        self.take_parts(f, n_parts);
        self.state.fetch_and(!OPEN, SeqCst);
        let mut spins = 0_u32;
        while self.state.load(SeqCst) & INSIDE != 0 {
            spins += 1;
            // A worker that lost its core needs ours.
            if spins.is_multiple_of(1 << 14) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        lock(&self.panic).take()
    }

    /// Runs parts until none is left.
    fn take_parts(&self, f: &(dyn Fn(usize) + Sync), n_parts: usize) {
        loop {
            let part = self.next.fetch_add(1, SeqCst);
            if part >= n_parts {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(part))) {
                lock(&self.panic).get_or_insert(panic);
            }
        }
    }

    /// The life of a worker.
    fn work(&self) {
        let mut done = 0;
        while let Some(region) = self.next_region(done) {
            done = region;
            // SAFETY: this worker is counted inside an open region, so the job stays as it is.
            let Some(job) = (unsafe { *self.job.get() }) else { continue };
            // SAFETY: the caller waits for us before it lets go of the function.
            self.take_parts(unsafe { &*job.function }, job.n_parts);
            self.state.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for an open region other than `done` and enters it; nothing when the pool ends.
    fn next_region(&self, done: u64) -> Option<u64> {
        let mut since = Instant::now();
        let mut spins = 0_u32;
        loop {
            let state = self.state.load(SeqCst);
            let region = state & !(OPEN | INSIDE);
            if state & OPEN != 0 && region != done {
                if self.state.compare_exchange(state, state + 1, SeqCst, SeqCst).is_ok() {
                    return Some(region);
                }
                continue;
            }
            if self.stop.load(SeqCst) {
                return None;
            }
            spins += 1;
            if spins.is_multiple_of(64) {
                let idle = since.elapsed();
                if idle > PATIENCE {
                    self.sleep(done);
                    since = Instant::now();
                } else if idle > SPIN {
                    std::thread::yield_now();
                }
            }
            std::hint::spin_loop();
        }
    }

    /// Sleeps until there is an open region other than `done`, or the end.
    fn sleep(&self, done: u64) {
        let mut bed = lock(&self.bed);
        self.sleeping.fetch_add(1, SeqCst);
        loop {
            let state = self.state.load(SeqCst);
            let work = state & OPEN != 0 && state & !(OPEN | INSIDE) != done;
            if work || self.stop.load(SeqCst) {
                break;
            }
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, SeqCst);
    }

    fn wake_all(&self) {
        // With the lock held, a worker is either asleep already or has not yet looked at the state.
        let _bed = lock(&self.bed);
        self.wake.notify_all();
    }
}

/// Locks without caring for poison: what is behind the locks of this file is valid at all times.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_for_any_number_of_threads() {
        for n_threads in [1, 2, 3, 8] {
            let pool = Pool::new(n_threads);
            assert_eq!(pool.n_threads(), n_threads);
            for n_parts in [0, 1, 2, 7, 64] {
                let counts: Vec<_> = (0..n_parts).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_parts, &|part| {
                    counts[part].fetch_add(1, SeqCst);
                });
                assert!(counts.iter().all(|count| count.load(SeqCst) == 1));
            }
        }
    }

    #[test]
    fn many_short_regions_with_sleep_between_some() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        for round in 0..3000 {
            pool.run(5, &|part| {
                total.fetch_add(part, SeqCst);
            });
            if round % 500 == 0 {
                std::thread::sleep(4 * PATIENCE);
            }
        }
        assert_eq!(total.load(SeqCst), 3000 * 10);
    }

    #[test]
    fn regions_from_several_threads_and_inside_regions_all_run() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(3, &|_| {
                            pool.run(2, &|_| {
                                total.fetch_add(1, SeqCst);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(SeqCst), 4 * 200 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        for bad in 0..4 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(4, &|part| assert!(part != bad, "part {part} is bad"));
            }));
            let message = caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*message, format!("part {bad} is bad"));
        }
        let total = AtomicUsize::new(0);
        pool.run(4, &|part| {
            total.fetch_add(part, SeqCst);
        });
        assert_eq!(total.load(SeqCst), 6);
    }
}
