//! The self-test of what only some families need: experts and Mamba-2 layers, in small shapes of their kind.

use safetensors::Dtype;
use tramontane_models::spec;

use super::{Results, compare, download, tensor, tolerance, upload, values};
use crate::error::Result;
use crate::nn::experts::Choice;
use crate::ops::{Cpu, Cuda, Format, KvFormat, MambaWeights, Ops};

/// Tokens for which there are kernels of their own: few, and many.
const TOKENS: [usize; 2] = [3, 12];

/// Compares experts like those of `spec`, their weights in `format`.
pub(in crate::ops::cuda) fn experts(
    cuda: &Cuda,
    format: Format,
    spec: &spec::Experts,
) -> Result<()> {
    let groups = spec.router.groups.map(|_| spec::Groups { n_groups: 3, n_active: 2 });
    let router = spec::Router { groups, ..spec.router.clone() };
    let small = spec::Experts { n_experts: 6, n_active: 2, inner: 40, router, ..spec.clone() };
    let got = mixtures(cuda, format, &small)?;
    let want = mixtures(&Cpu::unrounded(), format, &small)?;
    compare(cuda, &got, &want, tolerance(format, KvFormat::F32))
}

fn mixtures<D: Ops>(d: &D, format: Format, spec: &spec::Experts) -> Result<Results> {
    let (hidden, inner) = (64, spec.inner);
    let weight = |rows: usize, cols: usize| d.weight(&tensor(rows, cols, Dtype::F32), format);
    let shapes = [[inner, hidden], [inner, hidden], [hidden, inner]];
    let shapes = if spec.gated { &shapes[..] } else { &shapes[1..] };
    let expert = |_| shapes.iter().map(|[rows, cols]| weight(*rows, *cols)).collect();
    let experts: Vec<Vec<D::Weight>> = (0..spec.n_experts).map(expert).collect::<Result<_>>()?;
    let matrices: Vec<Vec<&D::Weight>> = experts.iter().map(|e| e.iter().collect()).collect();
    let correction = if spec.router.correction { values(spec.n_experts, 11) } else { Vec::new() };
    let together = d.experts(spec, &correction, &matrices)?;
    let mut all = Vec::new();
    for n in TOKENS {
        let outputs = values(n * spec.n_experts, 12);
        // Small inputs, so that results are less than 1 large: errors of larger ones that cancel out would not count as small.
        let x: Vec<f32> = values(n * hidden, 13).iter().map(|x| x / 8.0).collect();
        if let Some(experts) = &together {
            let mut out = d.buffer(n * hidden)?;
            d.mix_experts(experts, &upload(d, &outputs)?, &upload(d, &x)?, n, &mut out)?;
            all.push(("experts", download(d, &out)?));
            continue;
        }
        let choice = Choice::new(&spec.router, spec.n_active, correction.clone());
        let mut sums = vec![0.0; n * hidden];
        for (token, outputs) in outputs.chunks_exact(spec.n_experts).enumerate() {
            for (expert, weight) in choice.route(outputs) {
                let x = &x[token * hidden..][..hidden];
                let result = one(d, spec, &matrices[expert], x)?;
                let sums = sums[token * hidden..][..hidden].iter_mut();
                sums.zip(result).for_each(|(sum, y)| *sum += weight * y);
            }
        }
        all.push(("experts", sums));
    }
    Ok(all)
}

/// One expert for one token.
fn one<D: Ops>(
    d: &D,
    spec: &spec::Experts,
    matrices: &[&D::Weight],
    x: &[f32],
) -> Result<Vec<f32>> {
    let (x, mut out) = (upload(d, x)?, d.buffer(x.len())?);
    let (mut inner, mut spare) = (d.buffer(spec.inner)?, d.buffer(spec.inner)?);
    match matrices {
        [gate, up, _] => {
            let both = [*gate, *up];
            d.gated_linear(spec.activation, both, spec.inner, &x, 1, &mut inner, &mut spare)?;
        }
        _ => {
            d.linear(&matrices[..1], &x, 1, &mut [&mut inner])?;
            d.activate(spec.activation, &mut inner, spec.inner)?;
        }
    }
    d.linear(&matrices[matrices.len() - 1..], &inner, 1, &mut [&mut out])?;
    download(d, &out)
}

/// Compares Mamba-2 mixers like those of `shape`.
pub(in crate::ops::cuda) fn mamba(cuda: &Cuda, shape: &spec::Mamba) -> Result<()> {
    let small = spec::Mamba { n_heads: 4, head_dim: 12, n_groups: 2, ..shape.clone() };
    let got = recurrences(cuda, &small)?;
    compare(cuda, &got, &recurrences(&Cpu::unrounded(), &small)?, 1e-4)
}

fn recurrences<D: Ops>(d: &D, shape: &spec::Mamba) -> Result<Results> {
    let heads = |seed| values(shape.n_heads, seed);
    let decays: Vec<f32> = heads(1).iter().map(|x| -x.exp()).collect();
    let weights = MambaWeights {
        conv: upload(d, &values(shape.conv_width * shape.conv_dim(), 2))?,
        conv_bias: Some(upload(d, &values(shape.conv_dim(), 3))?),
        decay: upload(d, &decays)?,
        skip: upload(d, &heads(4))?,
        step: upload(d, &heads(5))?,
        norm: upload(d, &values(shape.inner(), 6))?,
    };
    let (mut state, mut all) = (d.state(shape)?, Vec::new());
    for n in TOKENS {
        let mut x = upload(d, &values(n * shape.in_dim(), 7))?;
        let mut out = d.buffer(n * shape.inner())?;
        d.mamba(shape, &weights, &mut x, n, &mut state, &mut out)?;
        all.push(("mamba", download(d, &out)?));
    }
    Ok(all)
}
