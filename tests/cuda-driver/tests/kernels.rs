//! Every committed CUDA kernel, with every shape and type of the shared table, on the emulated device, against the
//! reference. The device checks each access meanwhile. With `TRAMONTANE_TEST_GPU=1` the same tests run on the GPU of this
//! machine instead.

#[path = "common/attention.rs"]
mod attention;
mod common;
#[path = "kernels/experts.rs"]
mod experts;
#[path = "kernels/mamba.rs"]
mod mamba;
#[path = "common/experts.rs"]
mod mixtures;
#[path = "common/packed.rs"]
mod packed;
#[path = "common/recurrence.rs"]
mod recurrence;

use std::sync::atomic::{AtomicUsize, Ordering};

use attention::Setup;
use common::{ELEMENTS, Gpu, rounded};
use packed::{Layout, PACKED};
use tramontane_kernels::cases::{
    ATTENTION, AttentionCase, MATMUL, MatmulCase, Numbers, assert_close,
};
use tramontane_kernels::cpu::elementwise::{Activation, Rope, RopeStyle};
use tramontane_kernels::cuda::{
    self, CacheHeads, Cached, Element, Input, Norm, PAGE, Packed, Target,
};
use tramontane_kernels::reference;

/// Largest difference, for the report that `--nocapture` shows.
fn error(got: &[f32], want: &[f32]) -> f32 {
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn matmul_on(gpu: &Gpu<'_>, case: MatmulCase, element: Element) -> (Vec<f32>, Vec<f32>, f32) {
    let mut numbers = Numbers::new(case.seed());
    let w = rounded(element, &numbers.normal(case.rows * case.cols));
    let x = numbers.normal(case.n * case.cols);
    let mut want = vec![0.0; case.n * case.rows];
    reference::matmul(&w, case.rows, case.cols, &x, &mut want);
    let at = gpu.floats(&x);
    let bytes = cuda::rounded_bytes(element, case.n, case.cols);
    let half = gpu.empty(bytes);
    let mut tolerance = case.tolerance();
    if bytes > 0 {
        gpu.run(&[cuda::round(element, at, half, case.n * case.cols)]);
        // Inputs lose half a unit of 11 or 8 bits; the errors of a row add up like a random walk.
        let unit = if element == Element::F16 { 1.0 / 2048.0 } else { 1.0 / 256.0 };
        tolerance += 5.0 * unit * (case.cols as f32).sqrt();
    }
    let out = gpu.empty(4 * want.len());
    let w = gpu.elements(element, &w);
    let input = Input { x: at, rounded: half, n: case.n, cols: case.cols };
    gpu.run(&cuda::matmul(element, input, &[Target { w, out, rows: case.rows }]));
    (gpu.read(out, want.len()), want, tolerance)
}

#[test]
fn matmul_agrees_with_the_reference() {
    // Tiles that are full and tiles that are not, deeper than the pipeline and shallower.
    let more =
        [(9, 128, 8), (64, 128, 96), (65, 129, 40), (100, 300, 136), (12, 5, 12), (8, 9, 24)];
    let more = more.map(|(n, rows, cols)| MatmulCase { n, rows, cols });
    for element in ELEMENTS {
        let mut worst = 0.0f32;
        for &case in MATMUL.iter().chain(&more) {
            let (got, want, tolerance) = matmul_on(&Gpu::new(), case, element);
            assert_close(&got, &want, tolerance, &format!("{case:?} {element:?}"));
            worst = worst.max(error(&got, &want));
        }
        println!("matmul {element:?}: max error {worst:e}");
    }
    finished();
}

#[test]
fn packed_matmul_agrees_with_the_reference() {
    // Rows and columns that fill panels and groups and those that do not; more pieces than warps; many tokens.
    let more = [(1, 16, 64), (1, 17, 1100), (2, 3, 70), (4, 40, 33), (8, 33, 640), (13, 20, 130)];
    let more = more.into_iter().chain([(33, 50, 72), (40, 130, 136), (34, 18, 20)]);
    let more: Vec<_> = more.map(|(n, rows, cols)| MatmulCase { n, rows, cols }).collect();
    for format in [Packed::Q8, Packed::Q4] {
        let mut worst = 0.0f32;
        for &case in MATMUL.iter().chain(&more) {
            let (got, want, tolerance) = packed::matmul_on(&Gpu::new(), case, format);
            assert_close(&got, &want, tolerance, &format!("{case:?} {format:?}"));
            worst = worst.max(error(&got, &want));
        }
        println!("matmul {format:?}: max error {worst:e}");
    }
    finished();
}

#[test]
fn several_matrices_give_the_bits_of_each_alone() {
    // Queries, keys and values, gate and up, and more than one launch takes; for each number of tokens that has a kernel.
    for rows in [&[40, 16, 16][..], &[33, 50], &[8, 24, 8, 40]] {
        for n in [1, 2, 4, 8, 15] {
            for layout in ELEMENTS.map(Layout::Dense).into_iter().chain(PACKED) {
                let gpu = Gpu::new();
                let (cols, mut numbers) = (72, Numbers::new(n as u64));
                let x = gpu.floats(&numbers.normal(n * cols));
                let rounded = gpu.empty(2 * n * cols);
                if let Some(element) = layout.rounding(n, cols) {
                    gpu.run(&[cuda::round(element, x, rounded, n * cols)]);
                }
                let input = Input { x, rounded, n, cols };
                let target = |&rows: &usize| {
                    let w = layout.matrix(&gpu, &numbers.normal(rows * cols), rows, cols);
                    Target { w, out: gpu.empty(4 * n * rows), rows }
                };
                let targets: Vec<Target> = rows.iter().map(target).collect();
                gpu.run(&layout.matmul(input, &targets));
                for target in &targets {
                    let alone = Target { out: gpu.empty(4 * n * target.rows), ..*target };
                    gpu.run(&layout.matmul(input, &[alone]));
                    let read = |out| gpu.read(out, n * target.rows);
                    assert_eq!(read(target.out), read(alone.out), "{layout:?} {n} {rows:?}");
                }
            }
        }
    }
    finished();
}

#[test]
fn packed_rows_are_those_of_the_reference() {
    let gpu = Gpu::new();
    for (format, (rows, width)) in [
        (Packed::Q8, (40, 64)),
        (Packed::Q8, (5, 300)),
        (Packed::Q4, (33, 64)),
        (Packed::Q4, (20, 270)),
    ] {
        let (bytes, table) =
            packed::pack_as(format, &Numbers::new(5).normal(rows * width), rows, width);
        let ids = [rows as u32 - 1, 0, 3];
        let x = gpu.empty(12 * width);
        let (table_at, ids_at) = (gpu.bytes(&bytes), gpu.indices(&ids));
        gpu.run(&[cuda::embed_packed(format, table_at, ids_at, x, 3, width)]);
        let want: Vec<f32> =
            ids.iter().flat_map(|&i| table[i as usize * width..][..width].to_vec()).collect();
        assert_close(&gpu.read(x, 3 * width), &want, 1e-6, &format!("{format:?}"));
    }
    finished();
}

/// Widths that the tensor-core kernel exists for, around its tiles and with each option.
fn prefill_cases() -> Vec<AttentionCase> {
    let case = |n, start, n_heads, n_kv_heads, dim| AttentionCase {
        n,
        start,
        n_heads,
        n_kv_heads,
        k_dim: dim,
        v_dim: dim,
        window: None,
        softcap: None,
        alibi: false,
    };
    let mut cases = vec![
        case(9, 0, 1, 1, 64),
        case(64, 0, 2, 1, 64),
        case(65, 63, 2, 2, 64),
        case(130, 70, 2, 1, 80),
        case(70, 0, 1, 1, 96),
        case(100, 33, 4, 2, 128),
        case(40, 100, 1, 1, 256),
        case(66, 62, 4, 2, 96),
        // Few queries of wide heads: the decode kernel, also with more heads in a group than it takes at once.
        case(1, 300, 8, 1, 128),
        case(2, 250, 20, 2, 80),
        case(1, 90, 3, 1, 256),
    ];
    // Keys wider than values, as latent attention has them, and the other way round.
    cases.push(AttentionCase { v_dim: 128, ..case(70, 66, 2, 2, 192) });
    cases.push(AttentionCase { v_dim: 128, ..case(1, 300, 3, 3, 192) });
    cases.push(AttentionCase { v_dim: 100, ..case(2, 60, 2, 1, 36) });
    cases.push(AttentionCase { window: Some(20), ..case(80, 100, 2, 1, 64) });
    cases.push(AttentionCase { window: Some(64), ..case(64, 128, 1, 1, 128) });
    cases.push(AttentionCase { window: Some(300), ..case(1, 900, 4, 1, 128) });
    cases.push(AttentionCase { alibi: true, ..case(33, 50, 2, 1, 64) });
    cases.push(AttentionCase { softcap: Some(4.0), ..case(12, 50, 2, 1, 64) });
    cases
}

#[test]
fn attention_agrees_with_the_reference() {
    let cases: Vec<_> = ATTENTION.iter().copied().chain(prefill_cases()).collect();
    for element in ELEMENTS.map(Cached::Float).into_iter().chain([Cached::Q8]) {
        let mut worst = 0.0f32;
        for &case in &cases {
            let setup = Setup::new(case, element);
            let got =
                setup.try_run(&Gpu::new()).unwrap_or_else(|e| panic!("{case:?} {element:?}: {e}"));
            assert_close(&got, &setup.want, setup.tolerance(), &format!("{case:?} {element:?}"));
            worst = worst.max(error(&got, &setup.want));
        }
        println!("attention {element:?}: max error {worst:e}");
    }
    finished();
}

#[test]
fn tokens_give_the_same_bits_alone_and_together() {
    // Decode chunks begin at fixed positions, so it does not matter how a prompt was cut.
    let case = AttentionCase { n: 6, start: 253, window: Some(255), ..ATTENTION[7] };
    let setup = Setup::new(case, Cached::Float(Element::F16));
    let together = setup.try_run(&Gpu::new()).unwrap();
    let alone: Vec<f32> = (0..6).flat_map(|t| setup.try_part(&Gpu::new(), t, 1).unwrap()).collect();
    assert_eq!(together, alone);
    finished();
}

#[test]
fn what_is_not_finite_stays_so_in_eight_bits() {
    let heads = CacheHeads { n_kv_heads: 1, k_dim: 64, v_dim: 40 };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let gpu = Gpu::new();
        let page = gpu.empty(cuda::page_bytes(Cached::Q8, heads));
        let (mut key, mut value) = ([1.0; 64], [0.5; 2 * 40]);
        (key[40], value[33]) = (bad, bad);
        let (k, v) = (gpu.floats(&[key, [0.0; 64]].concat()), gpu.floats(&value));
        gpu.run(&[cuda::store(Cached::Q8, gpu.bytes(&page.to_le_bytes()), [k, v], heads, [3, 2])]);
        // Two scales of the key, none of the key of zeros; then the values'.
        let scales = page + (PAGE * (64 + 40)) as u64;
        let of_keys = gpu.read(scales + 4 * 2 * 3, 4);
        assert!(of_keys[0] == 1.0 / 127.0 && of_keys[1].is_nan() && of_keys[2..] == [0.0, 0.0]);
        let of_values = gpu.read(scales + (4 * (2 * PAGE + 3)) as u64, 2);
        assert!(of_values[0].is_nan() && of_values[1] == 0.5 / 127.0, "{of_values:?}");
    }
    finished();
}

#[test]
fn norms_agree_with_the_reference() {
    let gpu = Gpu::new();
    for (n, width) in [(1, 1), (3, 64), (2, 255), (2, 257), (5, 1000)] {
        let mut numbers = Numbers::new(width as u64);
        let (x, add) = (numbers.normal(n * width), numbers.normal(n * width));
        let (weight, bias) = (numbers.normal(width), numbers.normal(width));
        let sum: Vec<f32> = x.iter().zip(&add).map(|(a, b)| a + b).collect();
        for (centred, with_bias, with_add) in
            [(false, false, false), (false, false, true), (true, true, false), (true, false, true)]
        {
            let input = if with_add { &sum } else { &x };
            let mut want = vec![0.0; n * width];
            if centred {
                reference::layer_norm(input, &weight, with_bias.then_some(&bias), 1e-5, &mut want);
            } else {
                reference::rms_norm(input, &weight, 1e-5, &mut want);
            }
            let bias = if with_bias { gpu.floats(&bias) } else { 0 };
            let norm = Norm { weight: gpu.floats(&weight), bias, width, eps: 1e-5, centred };
            let (at, out) = (gpu.floats(&x), gpu.empty(4 * n * width));
            let add = if with_add { gpu.floats(&add) } else { 0 };
            gpu.run(&[cuda::norm(&norm, add, at, out, n)]);
            assert_close(
                &gpu.read(out, n * width),
                &want,
                2e-5,
                &format!("{n} rows of {width}, centred {centred}"),
            );
            assert_close(&gpu.read(at, n * width), input, 0.0, "the residual stream");
            if !with_add {
                gpu.run(&[cuda::norm(&norm, 0, at, at, n)]);
                assert_close(&gpu.read(at, n * width), &want, 2e-5, "in place");
            }
        }
    }
    finished();
}

#[test]
fn rotations_agree_with_the_reference() {
    let gpu = Gpu::new();
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        for (n, n_heads, head_dim, offset, rotary_dim) in
            [(1, 1, 2, 0, 2), (3, 4, 16, 0, 16), (5, 3, 24, 8, 12), (2, 8, 128, 0, 64)]
        {
            let rope = Rope { n_heads, head_dim, offset, rotary_dim, style };
            let mut numbers = Numbers::new(head_dim as u64);
            let angles = numbers.normal(n * rotary_dim / 2);
            let (cos, sin): (Vec<f32>, Vec<f32>) =
                angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let angles = [gpu.floats(&cos), gpu.floats(&sin)];
            // Queries alone, and with keys of another number of heads.
            let mut x = numbers.normal(n * n_heads * head_dim);
            let (at, both_at) = (gpu.floats(&x), gpu.floats(&x));
            let mut y = numbers.normal(n * 3 * head_dim);
            let y_at = gpu.floats(&y);
            gpu.run(&[
                cuda::rotate(&rope, angles, at, n),
                cuda::rotate_both(&rope, angles, both_at, y_at, 3, n),
            ]);
            reference::rope(&rope, &cos, &sin, &mut x);
            reference::rope(&Rope { n_heads: 3, ..rope }, &cos, &sin, &mut y);
            for (at, want) in [(at, &x), (both_at, &x), (y_at, &y)] {
                assert_close(&gpu.read(at, want.len()), want, 1e-6, &format!("{rope:?}"));
            }
        }
    }
    finished();
}

#[test]
fn activations_agree_with_the_reference() {
    let gpu = Gpu::new();
    let mut x: Vec<f32> = (-4000..4000).map(|i| i as f32 / 160.0).collect();
    x.extend([0.0, -0.0, 1e-20, -1e-20, 90.0, -90.0, 1e4, -1e4, f32::INFINITY]);
    let up = Numbers::new(1).normal(x.len());
    for act in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::ReluSquared,
    ] {
        let want: Vec<f32> = x.iter().map(|&v| reference::activation(act, v)).collect();
        let at = gpu.floats(&x);
        gpu.run(&[cuda::activate(act, at, x.len())]);
        let got = gpu.read(at, x.len());
        for ((got, want), x) in got.iter().zip(&want).zip(&x) {
            let close =
                (got - want).abs() <= 4e-7 * (1.0 + x.abs()) + 3e-7 * want.abs() || got == want;
            assert!(close, "{act:?}({x}) = {got}, expected {want}");
        }
        let at = gpu.floats(&x);
        gpu.run(&[cuda::gate(act, gpu.floats(&up), at, x.len())]);
        for (i, gated) in gpu.read(at, x.len()).iter().enumerate() {
            assert!(
                (gated - got[i] * up[i]).abs() <= 1e-6 * gated.abs() || *gated == got[i] * up[i],
                "{act:?} {i}"
            );
        }
    }
    finished();
}

#[test]
fn rows_are_found_added_scaled_and_scattered() {
    let gpu = Gpu::new();
    let mut numbers = Numbers::new(3);
    for width in [1, 64, 300] {
        let table = numbers.normal(7 * width);
        let ids = [6u32, 0, 3];
        for element in ELEMENTS {
            let x = gpu.empty(12 * width);
            gpu.run(&[cuda::embed(
                element,
                gpu.elements(element, &table),
                gpu.indices(&ids),
                x,
                3,
                width,
            )]);
            let want: Vec<f32> = ids
                .iter()
                .flat_map(|&i| rounded(element, &table[i as usize * width..][..width]))
                .collect();
            assert_eq!(gpu.read(x, 3 * width), want);
        }
        // Two thirds of each row, behind one another; and each row twice.
        let (some, from) = (width.div_ceil(3) * 2, width / 3);
        let (x, out) = (numbers.normal(3 * width), gpu.floats(&vec![0.0; 8 * some]));
        let at = gpu.floats(&x);
        gpu.run(&[cuda::copy_blocks(
            at,
            out,
            [some.min(width - from), 6, 2],
            (from, width),
            (1, some),
        )]);
        let mut want = vec![0.0; 8 * some];
        for i in 0..6 {
            let row = &x[i / 2 * width..][from..width];
            let row = &row[..some.min(row.len())];
            want[1 + i * some..][..row.len()].copy_from_slice(row);
        }
        assert_eq!(gpu.read(out, want.len()), want);

        let (x, y, factors) =
            (numbers.normal(7 * width), numbers.normal(3 * width), [0.5, -2.0, 3.0]);
        let out = gpu.empty(12 * width);
        gpu.run(&[cuda::gather(gpu.floats(&x), gpu.indices(&ids), out, width, 3)]);
        let want: Vec<f32> =
            ids.iter().flat_map(|&i| x[i as usize * width..][..width].to_vec()).collect();
        assert_eq!(gpu.read(out, 3 * width), want);

        let at = gpu.floats(&x);
        gpu.run(&[cuda::scatter_add(
            gpu.floats(&y),
            gpu.indices(&ids),
            gpu.floats(&factors),
            at,
            width,
            3,
        )]);
        let mut want = x.clone();
        for (i, &row) in ids.iter().enumerate() {
            (0..width)
                .for_each(|d| want[row as usize * width + d] += factors[i] * y[i * width + d]);
        }
        assert_close(&gpu.read(at, x.len()), &want, 1e-6, "scatter_add");

        let at = gpu.floats(&y);
        gpu.run(&[
            cuda::add_bias(gpu.floats(&x), at, width, 3),
            cuda::scale_rows(gpu.floats(&factors), at, width, 3),
        ]);
        let want: Vec<f32> =
            (0..3 * width).map(|i| (y[i] + x[i % width]) * factors[i / width]).collect();
        assert_close(&gpu.read(at, y.len()), &want, 1e-6, "add_bias, scale_rows");

        let at = gpu.floats(&y);
        gpu.run(&[cuda::add(gpu.floats(&x), at, y.len())]);
        let want: Vec<f32> = y.iter().zip(&x).map(|(a, b)| a + b).collect();
        assert_eq!(gpu.read(at, y.len()), want);
    }
    finished();
}

#[test]
fn the_largest_values_come_first() {
    let gpu = Gpu::new();
    for (n, k) in [(1, 1), (5, 5), (1000, 40), (1024, 256), (1025, 1), (5000, 50), (32000, 1)] {
        let mut values = Numbers::new(n as u64).normal(n);
        values[n / 2] = values[n - 1];
        let scratch = [(); 2].map(|()| gpu.empty(cuda::top_bytes(n, k)));
        let (launches, side) = cuda::top(gpu.floats(&values), n, k, scratch);
        gpu.run(&launches);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        let want: Vec<f32> = order[..k].iter().map(|&i| values[i]).collect();
        assert_eq!(gpu.read(scratch[side], k), want, "{k} of {n}");
        let indices = gpu.numbers(scratch[side] + 4 * k as u64, k);
        assert!(indices.iter().map(|i| *i as usize).eq(order[..k].iter().copied()), "{k} of {n}");
    }
    finished();
}

/// Says where the tests of this file run; a GPU that was asked for must be there.
#[test]
fn the_gpu_of_this_machine_runs_the_same_table() {
    if common::real::is_wanted() {
        match common::real::Device::open() {
            Ok(device) => eprintln!("all tests of this file run on {}", device.name),
            Err(e) => panic!("TRAMONTANE_TEST_GPU is set, but {e}"),
        }
    } else {
        eprintln!("skipped on a GPU: only TRAMONTANE_TEST_GPU=1 says that there is one to test");
    }
}

/// The way to a GPU itself: the driver's C interface, which the emulated driver has too.
#[cfg(target_os = "linux")]
#[test]
fn the_way_to_a_gpu_works_with_the_emulated_driver() {
    let program = std::env::current_exe().unwrap();
    // The library is built beside the tests.
    let library = program.with_file_name("libemulated_cuda.so");
    let dir = std::env::temp_dir().join(format!("tramontane-kernels-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let _ = std::os::unix::fs::symlink(&library, dir.join("libcuda.so"));
    let mut command = std::process::Command::new(program);
    let some = ["norms", "several_matrices", "the_largest", "rotations", "packed_rows", "the_gpu"];
    command.args(some).args(["--nocapture"]).env("TRAMONTANE_TEST_GPU", "1");
    command.env("LD_LIBRARY_PATH", &dir).env("TRAMONTANE_EMULATED_CUDA", "on");
    let output = command.output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("6 passed"), "{said}");
    assert!(said.contains("run on Emulated GPU"), "{said}");
}

#[test]
fn every_kernel_can_be_read_and_is_in_the_table_of_resources() {
    let resources = include_str!("../../../kernels/cuda/RESOURCES.md");
    for kernel in cuda::kernels() {
        assert!(resources.contains(&format!("| {kernel} |")), "{kernel} is not in RESOURCES.md");
        let text = cuda::ptx(kernel).unwrap();
        assert_eq!(emulated_cuda::load_module(&text).unwrap().len(), 1, "{kernel}");
    }
}

/// The tests above that launch kernels.
const TESTS: usize = 20;

/// Called at the end of each test that launches kernels: after the last of them, all kernels must have run.
fn finished() {
    static FINISHED: AtomicUsize = AtomicUsize::new(0);
    if FINISHED.fetch_add(1, Ordering::SeqCst) + 1 == TESTS {
        let missing: Vec<_> = cuda::kernels().filter(|kernel| !common::has_run(kernel)).collect();
        assert!(missing.is_empty(), "no test launches {missing:?}");
    }
}
