//! What the kernel benches share: timing, and the machine's own ceilings to compare with.
//!
//! Every figure is the best of many runs and their median: the best says what the code can do, the distance to the median
//! how quiet the machine was. Ceilings are measured in the same process, before the kernels.

#![allow(dead_code, reason = "each bench uses a part of this")]
#![allow(clippy::print_stdout, reason = "a bench prints its results")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use tramontane_kernels::bandwidth::read_bandwidth;
use tramontane_kernels::{Isa, Pool, default_threads};

/// Whether a measurement of this name was asked for: with arguments, those whose name contains one of them.
pub(crate) fn wanted(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word))
}

/// Seconds of a call: the best and the median of as many as fit into a third of a second.
#[derive(Clone, Copy)]
pub(crate) struct Seconds {
    pub(crate) best: f64,
    pub(crate) median: f64,
}

/// Times `f`, after one call that is not counted.
pub(crate) fn time(mut f: impl FnMut()) -> Seconds {
    f();
    let begin = Instant::now();
    let mut all = Vec::new();
    while all.len() < 5 || (begin.elapsed() < Duration::from_millis(350) && all.len() < 2000) {
        let start = Instant::now();
        f();
        all.push(start.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    Seconds { best: all[0], median: all[all.len() / 2] }
}

/// The machine, and its ceilings with the threads that the kernels use.
pub(crate) struct Machine {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    /// Bytes read from memory in a second.
    pub(crate) bandwidth: f64,
    /// f32 multiply-adds in a second, each counted as two operations.
    pub(crate) flops: f64,
}

impl Machine {
    /// Measures the ceilings and prints them. `BENCH_THREADS` overrides the number of threads.
    pub(crate) fn measure() -> Self {
        let threads = std::env::var("BENCH_THREADS").ok().and_then(|n| n.parse().ok());
        let machine = Self::with_threads(threads.unwrap_or_else(default_threads));
        println!(
            "{:?}, {} threads: read {:.1} GB/s, f32 {:.0} GFLOP/s",
            machine.isa,
            machine.pool.n_threads(),
            machine.bandwidth / 1e9,
            machine.flops / 1e9
        );
        machine
    }

    /// Measures the ceilings of some threads.
    pub(crate) fn with_threads(threads: usize) -> Self {
        let pool = Pool::new(threads);
        let isa = Isa::from_env().unwrap_or_else(|error| panic!("{error}"));
        let bandwidth = read_bandwidth(&pool).unwrap_or_else(|error| panic!("{error}"));
        let flops = flops(&pool);
        Self { isa, pool, bandwidth, flops }
    }
}

/// One line of results. `work` is bytes or operations, `peak` how many of them the machine can do in a second.
pub(crate) fn report(name: &str, time: Seconds, work: f64, unit: &str, peak: f64) {
    let [best, median] = [work / time.best, work / time.median];
    println!(
        "{name:44} {:9.1} µs  best {:7.1} {unit}  median {:7.1} {unit}  {:4.0} % of the peak",
        time.median * 1e6,
        best / 1e9,
        median / 1e9,
        100.0 * best / peak,
    );
}

/// Multiply-adds on registers.
fn flops(pool: &Pool) -> f64 {
    const ROUNDS: usize = 100_000;
    let parts = pool.n_threads();
    let time = time(|| {
        pool.run(parts, &|_| {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
            {
                // SAFETY: the CPU has the instructions.
                black_box(unsafe { multiply_add_avx2(ROUNDS) });
                return;
            }
            black_box(multiply_add(ROUNDS));
        });
    });
    (parts * ROUNDS * LANES * 2) as f64 / time.best
}

/// Independent sums: enough to hide the latency of twelve vectors of eight.
const LANES: usize = 96;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(rounds: usize) -> [f32; LANES] {
    let (mut sums, x) = ([0.5_f32; LANES], black_box(0.999_f32));
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = sum.mul_add(x, x));
    }
    sums
}

fn multiply_add(rounds: usize) -> [f32; LANES] {
    let (mut sums, x) = ([0.5_f32; LANES], black_box(0.999_f32));
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = *sum * x + x);
    }
    sums
}
