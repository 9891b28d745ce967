//! The CUDA kernels one by one on the GPU of this machine, in the shapes of Mistral 7B: decode and rows against the
//! memory's own bandwidth (the best of several large copies), prompts in operations per second. Without a GPU it says so.
//!
//! `cargo bench -p tramontane-cuda-driver --bench cuda [-- decode|prompt|attend|rows]`; the whole model:
//! `tramontane bench --device cuda`.

#![allow(clippy::print_stdout, reason = "a bench prints its results")]

#[path = "../tests/cuda-driver/tests/common/real.rs"]
mod real;

use std::time::Instant;

use real::Device;
use tramontane_kernels::cuda::{
    self, AttendArgs, CacheHeads, Cached, Element, Input, Launch, Norm, PAGE, Packed, Target,
};
use tramontane_kernels::packed::Format;

type Result<T> = std::result::Result<T, String>;

const HIDDEN: usize = 4096;
const INNER: usize = 14336;
const HEADS: CacheHeads = CacheHeads { n_kv_heads: 8, k_dim: 128, v_dim: 128 };
const QUERY_HEADS: usize = 32;

/// Several times what a second-level cache holds: weights are read from memory.
const WEIGHT_BYTES: usize = 512 << 20;

/// A GPU and its ceiling.
struct Bench {
    device: Device,
    /// Bytes per second that copies read and write.
    bandwidth: f64,
    wanted: Vec<String>,
}

fn main() {
    let wanted = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    match Bench::open(wanted) {
        Err(e) => println!("skipped: this bench needs an NVIDIA GPU, but {e}"),
        Ok(bench) => bench.run().unwrap_or_else(|e| panic!("{e}")),
    }
}

impl Bench {
    fn open(wanted: Vec<String>) -> Result<Self> {
        let device = Device::open()?;
        let bandwidth = bandwidth(&device)?;
        println!("{}: copies move {:.0} GB/s", device.name, bandwidth / 1e9);
        Ok(Self { device, bandwidth, wanted })
    }

    fn run(&self) -> Result<()> {
        let formats = [Format::Bf16, Format::Q8, Format::Q4];
        for format in formats {
            for (rows, cols) in [(&[HIDDEN][..], HIDDEN), (&[INNER, INNER], HIDDEN)] {
                self.product("decode", format, 1, rows, cols)?;
            }
        }
        for format in formats {
            self.product("prompt", format, 256, &[INNER], HIDDEN)?;
        }
        for (cached, bytes) in [(Cached::Float(Element::F16), 2.0), (Cached::Q8, 1.08)] {
            self.attend(cached, bytes, 1, 8191)?;
            self.attend(cached, bytes, 256, 1792)?;
        }
        self.norm()?;
        self.largest()
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|word| name.contains(word.as_str()))
    }

    /// Zeros on the device.
    fn zeros(&self, bytes: usize) -> Result<u64> {
        let at = self.device.alloc(bytes.max(4))?;
        self.device.clear(at, bytes)?;
        Ok(at)
    }

    /// `n` tokens through matrices of so many rows, as many sets of them as no cache holds.
    fn product(
        &self,
        kind: &str,
        format: Format,
        n: usize,
        rows: &[usize],
        cols: usize,
    ) -> Result<()> {
        let name = format!("{kind} {format} {n} x {rows:?} x {cols}");
        if !self.is_wanted(&name) {
            return Ok(());
        }
        let len = |rows: &usize| format.packed_len(*rows, cols).unwrap_or(0);
        let bytes: usize = rows.iter().map(len).sum();
        let input =
            Input { x: self.zeros(4 * n * cols)?, rounded: self.zeros(2 * n * cols)?, n, cols };
        let mut launches = Vec::new();
        for _ in 0..WEIGHT_BYTES.div_ceil(bytes) {
            let target = |rows: &usize| {
                Ok(Target {
                    w: self.zeros(len(rows))?,
                    out: self.zeros(4 * n * rows)?,
                    rows: *rows,
                })
            };
            let targets = rows.iter().map(target).collect::<Result<Vec<_>>>()?;
            launches.extend(products(format, input, &targets));
        }
        let seconds = self.time(&launches)? / launches.len() as f64;
        let operations = 2 * n * cols * rows.iter().sum::<usize>();
        self.report(&name, seconds, bytes as f64, operations as f64);
        Ok(())
    }

    /// `n` queries behind `past` positions, in a cache of elements of so many bytes.
    fn attend(&self, element: Cached, bytes: f64, n: usize, past: usize) -> Result<()> {
        let name = format!("attend {element:?} {n} x {past}");
        if !self.is_wanted(&name) {
            return Ok(());
        }
        let pages = (0..(past + n).div_ceil(PAGE))
            .map(|_| self.zeros(cuda::page_bytes(element, HEADS)))
            .collect::<Result<Vec<_>>>()?;
        let table = self.zeros(8 * pages.len())?;
        let addresses: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.device.write(table, &addresses)?;
        let mut args = AttendArgs {
            element,
            pages: table,
            q: self.zeros(4 * n * QUERY_HEADS * HEADS.k_dim)?,
            out: self.zeros(4 * n * QUERY_HEADS * HEADS.v_dim)?,
            slopes: 0,
            partial: 0,
            n_heads: QUERY_HEADS,
            n_kv_heads: HEADS.n_kv_heads,
            head_dim: HEADS.k_dim,
            v_dim: HEADS.v_dim,
            n,
            start: past,
            window: None,
            scale: 0.1,
            softcap: None,
        };
        args.partial = self.zeros(4 * cuda::partial_len(&args))?;
        let seconds = self.time(&cuda::attend(&args))?;
        let seen = n * past + n * (n + 1) / 2;
        let width = HEADS.n_kv_heads * (HEADS.k_dim + HEADS.v_dim);
        let operations = 2 * seen * QUERY_HEADS * (HEADS.k_dim + HEADS.v_dim);
        self.report(&name, seconds, bytes * ((past + n) * width) as f64, operations as f64);
        Ok(())
    }

    /// Sums and norms of the rows of a prompt.
    fn norm(&self) -> Result<()> {
        let (name, n) = ("rows norm of a sum", 256);
        if !self.is_wanted(name) {
            return Ok(());
        }
        let rows = 4 * n * HIDDEN;
        let weight = self.zeros(4 * HIDDEN)?;
        let norm = Norm { weight, bias: 0, width: HIDDEN, eps: 1e-5, centred: false };
        let [add, x, out] = [self.zeros(rows)?, self.zeros(rows)?, self.zeros(rows)?];
        let seconds = self.time(&[cuda::norm(&norm, add, x, out, n)])?;
        self.report(name, seconds, 4.0 * rows as f64, 0.0);
        Ok(())
    }

    /// The best of 128k logits.
    fn largest(&self) -> Result<()> {
        let (name, n, k) = ("rows best of 131072", 131_072, 2);
        if !self.is_wanted(name) {
            return Ok(());
        }
        let bytes = cuda::top_bytes(n, k);
        let halves = [self.zeros(bytes)?, self.zeros(bytes)?];
        let (launches, _) = cuda::top(self.zeros(4 * n)?, n, k, halves);
        let seconds = self.time(&launches)?;
        self.report(name, seconds, 4.0 * n as f64, 0.0);
        Ok(())
    }

    /// Seconds of all `launches`: the best of five rounds of some 20 ms, which hide the wait at the end of each.
    fn time(&self, launches: &[Launch]) -> Result<f64> {
        let round = |repetitions: usize| -> Result<f64> {
            let start = Instant::now();
            for launch in (0..repetitions).flat_map(|_| launches) {
                self.device.launch(launch)?;
            }
            self.device.wait()?;
            Ok(start.elapsed().as_secs_f64() / repetitions as f64)
        };
        // The first one compiles.
        round(1)?;
        let repetitions = (0.02 / round(1)?).clamp(1.0, 1000.0) as usize;
        (0..5).try_fold(f64::INFINITY, |best, _| Ok(best.min(round(repetitions)?)))
    }

    fn report(&self, name: &str, seconds: f64, bytes: f64, operations: f64) {
        let speed = bytes / seconds;
        println!(
            "{name:44} {:9.1} µs {:8.1} GB/s {:4.0} % of the bandwidth {:8.2} TFLOP/s",
            1e6 * seconds,
            speed / 1e9,
            100.0 * speed / self.bandwidth,
            operations / seconds / 1e12,
        );
    }
}

fn products(format: Format, input: Input, targets: &[Target]) -> Vec<Launch> {
    match format {
        Format::F32 => cuda::matmul(Element::F32, input, targets),
        Format::F16 => cuda::matmul(Element::F16, input, targets),
        Format::Bf16 => cuda::matmul(Element::Bf16, input, targets),
        Format::Q8 => cuda::matmul_packed(Packed::Q8, input, targets),
        Format::Q4 => cuda::matmul_packed(Packed::Q4, input, targets),
    }
}

/// Bytes per second of the best of five copies, what is read and what is written.
fn bandwidth(device: &Device) -> Result<f64> {
    let bytes = WEIGHT_BYTES;
    let (from, to) = (device.alloc(bytes)?, device.alloc(bytes)?);
    device.clear(from, bytes)?;
    let copy = || -> Result<f64> {
        device.wait()?;
        let start = Instant::now();
        device.copy(from, to, bytes)?;
        device.wait()?;
        Ok(2.0 * bytes as f64 / start.elapsed().as_secs_f64())
    };
    (0..5).try_fold(0.0, |best, _| Ok(f64::max(best, copy()?)))
}
