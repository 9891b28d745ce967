//! The self-test: every operation on small inputs, on the device and on the CPU, and the results compared.
//!
//! A device whose driver compiles a kernel wrongly, or whose memory is broken, is found before it writes nonsense.

pub(super) mod families;

use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use tramontane_models::spec::{Activation, RopeStyle};

use super::{Cuda, HeadShape};
use crate::checkpoint::{Bytes, TensorData};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{
    AttendShape, Blocks, Cpu, Format, Heads, KvFormat, KvShape, NormWeight, Ops, Rotation, Stride,
};

/// Results of one device, with the names of the operations.
type Results = Vec<(&'static str, Vec<f32>)>;

/// What is tested: the formats and the heads of the model that is going to run.
#[derive(Clone, Copy)]
struct Plan {
    format: Format,
    kv: KvFormat,
    heads: HeadShape,
}

pub(super) fn run(cuda: &Cuda, format: Format, kv: KvFormat, heads: HeadShape) -> Result<()> {
    let plan = Plan { format, kv, heads };
    let got = results(cuda, plan)?;
    let want = results(&Cpu::unrounded(), plan)?;
    compare(cuda, &got, &want, tolerance(format, kv))
}

/// How far results may be apart. Tensor cores take inputs rounded to the weights' type, or to f16.
fn tolerance(format: Format, kv: KvFormat) -> f32 {
    match (format, kv) {
        (Format::Bf16, _) => 5e-2,
        (Format::F16 | Format::Q8 | Format::Q4, _) | (_, KvFormat::F16 | KvFormat::Q8) => 1e-2,
        (Format::F32 | Format::Auto, KvFormat::F32 | KvFormat::Auto) => 1e-4,
    }
}

/// Compares the device's results with the CPU's.
fn compare(cuda: &Cuda, got: &Results, want: &Results, tolerance: f32) -> Result<()> {
    for ((name, got), (_, want)) in got.iter().zip(want) {
        for (got, want) in got.iter().zip(want) {
            let close = (got - want).abs() <= tolerance * (1.0 + want.abs());
            if !close {
                return Err(Error::new(
                    ErrorKind::Device,
                    format!(
                        "the self-test of {} found {got} for `{name}`, expected {want}",
                        cuda.name()
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Numbers from -1 to 1 that are the same everywhere.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn upload<D: Ops>(d: &D, values: &[f32]) -> Result<D::Buffer> {
    let mut buffer = d.buffer(values.len())?;
    d.write(values, &mut buffer)?;
    Ok(buffer)
}

fn download<D: Ops>(d: &D, buffer: &D::Buffer) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    d.read(buffer, d.room(buffer), &mut out)?;
    Ok(out)
}

/// A matrix as a checkpoint would hold it.
fn tensor(rows: usize, cols: usize, dtype: Dtype) -> TensorData {
    let values = values(rows * cols, 7);
    let bytes: Vec<u8> = if dtype == Dtype::BF16 {
        values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
    } else if dtype == Dtype::F16 {
        values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
    } else {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    TensorData {
        name: "self-test".to_owned(),
        dtype,
        shape: vec![rows, cols],
        bytes: Bytes::from(bytes),
        file: Arc::from("self-test"),
    }
}

fn results<D: Ops>(d: &D, plan: Plan) -> Result<Results> {
    let mut all = Vec::new();
    products(d, plan, &mut all)?;
    rows(d, &mut all)?;
    largest(d, &mut all)?;
    for n in [1, 12] {
        attention(d, plan, n, &mut all)?;
    }
    Ok(all)
}

/// Products for every number of tokens that has a kernel of its own, and the embedding.
fn products<D: Ops>(d: &D, plan: Plan, all: &mut Results) -> Result<()> {
    let (rows, cols) = (40, 64);
    let w = d.weight(&tensor(rows, cols, Dtype::F32), plan.format)?;
    let other = d.weight(&tensor(rows / 2, cols, Dtype::F32), plan.format)?;
    for n in [1, 2, 4, 8, 40] {
        let x = upload(d, &values(n * cols, n as u32))?;
        let (mut out, mut second) = (d.buffer(n * rows)?, d.buffer(n * rows)?);
        d.linear(&[&w], &x, n, &mut [&mut out])?;
        all.push(("linear", download(d, &out)?));
        d.linear(&[&other, &w], &x, n, &mut [&mut second, &mut out])?;
        all.push(("linear", [download(d, &out)?, download(d, &second)?].concat()));
    }
    let mut x = d.buffer(3 * cols)?;
    d.embed(&w, &[39, 0, 5], &mut x)?;
    all.push(("embed", download(d, &x)?));
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let table = d.table(&tensor(rows, cols, dtype))?;
        d.embed(&table, &[1, 38, 1], &mut x)?;
        all.push(("embed", download(d, &x)?));
    }
    Ok(())
}

/// The largest of many values, more than one block of threads looks at, and their places.
fn largest<D: Ops>(d: &D, all: &mut Results) -> Result<()> {
    let (n, k) = (3000, 40);
    let values = values(n, 9);
    let found = match d.largest(&upload(d, &values)?, n, k)? {
        Some(found) => found,
        None => {
            let mut sorted: Vec<(u32, f32)> = (0..).zip(values).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            sorted.truncate(k);
            sorted
        }
    };
    all.push(("largest", found.into_iter().flat_map(|(i, value)| [i as f32, value]).collect()));
    Ok(())
}

/// Norms, additions, activations, and rows that move.
fn rows<D: Ops>(d: &D, all: &mut Results) -> Result<()> {
    let (n, width) = (5, 48);
    let input = values(n * width, 1);
    let y = upload(d, &values(n * width, 2))?;
    for centred in [false, true] {
        let weight = upload(d, &values(width, 3))?;
        let bias = if centred { Some(upload(d, &values(width, 4))?) } else { None };
        let norm = NormWeight { weight, bias, width, eps: 1e-5, centred };
        let mut out = d.buffer(n * width)?;
        d.norm(&norm, &upload(d, &input)?, n, &mut out)?;
        all.push(("norm", download(d, &out)?));
        let mut x = upload(d, &input)?;
        d.add_norm(&norm, &y, &mut x, n, &mut out)?;
        all.push(("add_norm", [download(d, &out)?, download(d, &x)?].concat()));
    }
    let mut x = upload(d, &input)?;
    d.add(&y, &mut x, n * width)?;
    d.add_bias(&upload(d, &values(width, 5))?, width, &mut x, n)?;
    d.scale_rows(&[1.0, -2.0, 0.5, 3.0, 1.5], width, &mut x)?;
    all.push(("add", download(d, &x)?));
    use Activation::{Gelu, GeluTanh, Relu, Relu2, Silu};
    for act in [Silu, Gelu, GeluTanh, Relu, Relu2] {
        let mut x = upload(d, &input)?;
        d.activate(act, &mut x, n * width)?;
        d.gate(act, &y, &mut x, n * width)?;
        all.push(("activate", download(d, &x)?));
    }
    let mut picked = d.buffer(2 * width)?;
    d.gather(&x, width, &[4, 1], &mut picked)?;
    d.scatter_add(&picked, width, &[0, 3], &[0.5, -1.0], &mut x)?;
    all.push(("gather", download(d, &picked)?));
    let (from, to) = (Stride { start: 8, step: width }, Stride { start: 4, step: 20 });
    d.copy_blocks(&Blocks { width: 16, count: 4, repeat: 2, from, to }, &x, &mut picked)?;
    all.push(("copy_blocks", download(d, &picked)?));
    all.push(("scatter_add", download(d, &x)?));
    Ok(())
}

/// Rotation, the cache, and attention of `n` queries behind 70 positions.
fn attention<D: Ops>(d: &D, plan: Plan, n: usize, all: &mut Results) -> Result<()> {
    let HeadShape { head_dim, v_dim, group } = plan.heads;
    let (n_heads, n_kv_heads, past) = (2 * group, 2, 70);
    let total = past + n;
    let rotary_dim = head_dim / 2 * 2;
    let angles = values(total * rotary_dim / 2, 5);
    let cos = upload(d, &angles.iter().map(|a| a.cos()).collect::<Vec<_>>())?;
    let sin = upload(d, &angles.iter().map(|a| a.sin()).collect::<Vec<_>>())?;
    let mut k = upload(d, &values(total * n_kv_heads * head_dim, 6))?;
    let v = upload(d, &values(total * n_kv_heads * v_dim, 7))?;
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        let rotation = Rotation { cos: &cos, sin: &sin, rotary_dim, style };
        let heads = Heads { n_heads: n_kv_heads, head_dim, offset: 0 };
        d.rotate(&rotation, heads, &mut k, total)?;
    }
    let rotation = Rotation { cos: &cos, sin: &sin, rotary_dim, style: RopeStyle::Halves };
    let heads = Heads { n_heads, head_dim, offset: 0 };
    let mut q = upload(d, &values(total * n_heads * head_dim, 9))?;
    d.rotate_both(&rotation, heads, &mut q, n_kv_heads, &mut k, total)?;
    all.push(("rotate", [download(d, &q)?, download(d, &k)?].concat()));
    let k_dim = head_dim;
    let mut kv = d.kv(KvShape { n_kv_heads, k_dim, v_dim, window: None, format: plan.kv })?;
    d.store(&mut kv, &k, &v, total, 0)?;
    let q = upload(d, &values(n * n_heads * head_dim, 8))?;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let slopes = (0..n_heads).map(|head| 0.5 / (1 + head) as f32).collect();
    for (window, alibi) in [(None, None), (Some(40), Some(slopes))] {
        let mut out = d.buffer(n * n_heads * v_dim)?;
        let shape = AttendShape { n_heads, n_kv_heads, k_dim, v_dim, scale, window, alibi };
        d.attend(&shape, &q, n, past, &kv, &mut out)?;
        all.push(("attend", download(d, &out)?));
    }
    Ok(())
}
