//! Linear layers over packed weights, in the shapes of a 1.3B Llama: decode against the read bandwidth of the machine,
//! prompts against its f32 multiply-adds (integer formats can exceed them), one core with everything in the cache.
//!
//! `cargo bench -p tramontane-kernels --bench matmul [-- decode|prompt|cache|pack] [format]`

#![allow(clippy::print_stdout, reason = "a bench prints its results")]

mod common;

use common::{Machine, report, time, wanted};
use tramontane_kernels::Pool;
use tramontane_kernels::cases::Numbers;
use tramontane_kernels::cpu::input::Input;
use tramontane_kernels::cpu::linear::{Linear, linear};
use tramontane_kernels::cpu::pack::pack;
use tramontane_kernels::formats::{Dense, Matrix};
use tramontane_kernels::memory::Arena;
use tramontane_kernels::packed::{Format, Packed};

/// Several times what a last-level cache holds.
const DECODE_BYTES: usize = 400 << 20;

/// A group of benches, for one format.
type Bench = fn(&Machine, Format);

fn main() {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |name: &str, all: &[&str]| {
        let named: Vec<_> = args.iter().filter(|arg| all.contains(&arg.as_str())).collect();
        named.is_empty() || named.into_iter().any(|arg| arg == name)
    };
    let machine = Machine::measure();
    let benches: [(&str, Bench); 4] =
        [("decode", decode), ("prompt", prompt), ("cache", cache), ("pack", packing)];
    for (name, bench) in benches {
        for format in Format::ALL {
            if wanted(name, &benches.map(|(name, _)| name))
                && wanted(format.name(), &Format::ALL.map(Format::name))
            {
                bench(&machine, format);
            }
        }
    }
}

fn matrix(
    machine: &Machine,
    format: Format,
    rows: usize,
    cols: usize,
    arena: &mut Arena,
) -> Packed {
    let values = Numbers::new(1).normal(rows * cols);
    let w = Matrix::new(rows, cols, Dense::F32(&values));
    pack(machine.isa, &machine.pool, format, &w, arena).unwrap_or_else(|error| panic!("{error}"))
}

/// One token through as many matrices as do not fit into any cache.
fn decode(machine: &Machine, format: Format) {
    let (rows, cols) = (5504, 2048);
    let copies = (DECODE_BYTES / format.packed_len(rows, cols).unwrap_or(1)).max(1);
    let name = format!("decode {format} {copies} x {rows} x {cols}");
    if !wanted(&name) {
        return;
    }
    let mut arena = Arena::new();
    let first = matrix(machine, format, rows, cols, &mut arena);
    let all: Vec<_> = (0..copies)
        .map(|_| {
            let mut block =
                arena.take(first.bytes().len()).unwrap_or_else(|error| panic!("{error}"));
            block.bytes_mut().copy_from_slice(first.bytes());
            let len = first.bytes().len();
            Packed::new(format, rows, cols, std::sync::Arc::new(block), 0..len)
                .unwrap_or_else(|e| panic!("{e}"))
        })
        .collect();
    let (x, mut out, mut input) = (Numbers::new(2).normal(cols), vec![0.0; rows], Input::new());
    let time = time(|| {
        for w in &all {
            input.set(machine.isa, &machine.pool, &x, cols, &[format]);
            linear(machine.isa, &machine.pool, &input, &mut [Linear::new(w, &mut out)]);
        }
    });
    let bytes = (copies * first.bytes().len()) as f64;
    report(&name, time, bytes, "GB/s", machine.bandwidth);
}

/// Many tokens through one matrix.
fn prompt(machine: &Machine, format: Format) {
    for (n, rows, cols) in
        [(512, 2048, 2048), (512, 5504, 2048), (512, 2048, 5504), (64, 2048, 2048), (8, 2048, 2048)]
    {
        let name = format!("prompt {format} {n} tokens {rows} x {cols}");
        if !wanted(&name) {
            continue;
        }
        let w = matrix(machine, format, rows, cols, &mut Arena::new());
        let (x, mut out) = (Numbers::new(2).normal(n * cols), vec![0.0; n * rows]);
        let mut input = Input::new();
        let time = time(|| {
            input.set(machine.isa, &machine.pool, &x, cols, &[format]);
            linear(machine.isa, &machine.pool, &input, &mut [Linear::new(&w, &mut out)]);
        });
        let operations = 2.0 * (n * rows * cols) as f64;
        report(&name, time, operations, "GOP/s", machine.flops);
    }
}

/// One thread, with weights that stay in the second-level cache: what the inner loops can do.
fn cache(machine: &Machine, format: Format) {
    let pool = Pool::new(1);
    let cols = 1088;
    let rows = ((260 << 10) / (format.packed_len(16, cols).unwrap_or(1) / 16) / 64).max(1) * 64;
    let w = matrix(machine, format, rows, cols, &mut Arena::new());
    for n in [1, 2, 3, 4, 6, 12, 48, 256] {
        let name = format!("cache {format} {n} tokens {rows} x {cols}");
        if !wanted(&name) {
            continue;
        }
        let (x, mut out) = (Numbers::new(2).normal(n * cols), vec![0.0; n * rows]);
        let mut input = Input::new();
        let prepare = time(|| input.set(machine.isa, &pool, &x, cols, &[format]));
        let time = time(|| linear(machine.isa, &pool, &input, &mut [Linear::new(&w, &mut out)]));
        let threads = machine.pool.n_threads() as f64;
        if n == 1 {
            report(&name, time, w.bytes().len() as f64, "GB/s", machine.bandwidth / threads);
        }
        report(&name, time, 2.0 * (n * rows * cols) as f64, "GOP/s", machine.flops / threads);
        println!(
            "{:44} {:9.2} ns for each activation",
            "  its input",
            prepare.best * 1e9 / (n * cols) as f64
        );
    }
}

/// Making packed weights from bf16.
fn packing(machine: &Machine, format: Format) {
    let name = format!("pack {format}, bf16 bytes read");
    if !wanted(&name) {
        return;
    }
    let (rows, cols) = (2048, 2048);
    let values: Vec<_> =
        Numbers::new(1).normal(rows * cols).into_iter().map(half::bf16::from_f32).collect();
    let w = Matrix::new(rows, cols, Dense::Bf16(&values));
    let time = time(|| {
        let packed = pack(machine.isa, &machine.pool, format, &w, &mut Arena::new());
        drop(packed.unwrap_or_else(|error| panic!("{error}")));
    });
    report(&name, time, 2.0 * (rows * cols) as f64, "GB/s", machine.bandwidth);
}
