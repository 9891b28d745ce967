//! A cache on the emulated device, beside the one of the reference.

use std::sync::Arc;

use tramontane_kernels::cases::{AttentionCase, Numbers};
use tramontane_kernels::cpu::attention::{Attention, BLOCK, KvBlock, KvFormat, KvShape, KvView};
use tramontane_kernels::cuda::{self, AttendArgs, CacheHeads, Cached, Element, PAGE};
use tramontane_kernels::memory::Recycler;
use tramontane_kernels::reference;
use tramontane_kernels::{Isa, Pool};

use crate::common::{Gpu, rounded};

/// Inputs of one case, and what the reference makes of them.
pub(crate) struct Setup {
    pub(crate) case: AttentionCase,
    element: Cached,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    slopes: Vec<f32>,
    pub(crate) want: Vec<f32>,
}

impl Setup {
    pub(crate) fn new(case: AttentionCase, element: Cached) -> Self {
        let mut numbers = Numbers::new((case.n * 31 + case.start * 7 + case.k_dim) as u64);
        let total = case.start + case.n;
        let (k_width, v_width) = (case.n_kv_heads * case.k_dim, case.n_kv_heads * case.v_dim);
        let q = numbers.normal(case.n * case.n_heads * case.k_dim);
        let k = stored(element, &numbers.normal(total * k_width));
        let v = stored(element, &numbers.normal(total * v_width));
        let slopes: Vec<f32> = (0..case.n_heads).map(|h| 0.5f32.powi(h as i32 % 8 + 1)).collect();
        let mut setup = Self { case, element, q, k, v, slopes, want: Vec::new() };
        setup.want = setup.reference();
        setup
    }

    fn reference(&self) -> Vec<f32> {
        let c = &self.case;
        let (n_kv_heads, k_dim, v_dim) = (c.n_kv_heads, c.k_dim, c.v_dim);
        // In 8 bits the reference rounds as the device does.
        let format = match self.element {
            Cached::Float(_) => KvFormat::F32,
            Cached::Q8 => KvFormat::Q8,
        };
        let shape = KvShape { n_kv_heads, k_dim, v_dim, format };
        let rows = |dim| BLOCK * n_kv_heads * dim;
        let block = |(k, v): (&[f32], &[f32])| {
            let mut block = KvBlock::new(shape, &Recycler::new()).expect("memory");
            block.store(Isa::portable(), &Pool::new(1), 0, k, v);
            Arc::new(block)
        };
        let blocks: Vec<_> =
            self.k.chunks(rows(k_dim)).zip(self.v.chunks(rows(v_dim))).map(block).collect();
        let attention = Attention {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            k_dim: c.k_dim,
            v_dim: c.v_dim,
            scale: self.scale(),
            window: c.window,
            softcap: c.softcap,
            alibi_slopes: c.alibi.then_some(&self.slopes),
        };
        let mut out = vec![0.0; c.n * c.n_heads * c.v_dim];
        reference::attend(
            &attention,
            &self.q,
            c.start,
            &KvView { first: 0, blocks: &blocks },
            &mut out,
        );
        out
    }

    fn scale(&self) -> f32 {
        1.0 / (self.case.k_dim as f32).sqrt()
    }

    /// Runs the case on the device: stores all positions, then attends.
    pub(crate) fn try_run(&self, gpu: &Gpu<'_>) -> Result<Vec<f32>, emulated_cuda::LaunchError> {
        self.try_part(gpu, 0, self.case.n)
    }

    /// The same for `n` of the queries, from `first` on.
    pub(crate) fn try_part(
        &self,
        gpu: &Gpu<'_>,
        first: usize,
        n: usize,
    ) -> Result<Vec<f32>, emulated_cuda::LaunchError> {
        let c = &self.case;
        let q = &self.q[first * c.n_heads * c.k_dim..][..n * c.n_heads * c.k_dim];
        let total = c.start + c.n;
        let heads = CacheHeads { n_kv_heads: c.n_kv_heads, k_dim: c.k_dim, v_dim: c.v_dim };
        let bytes = cuda::page_bytes(self.element, heads);
        let pages: Vec<u64> = (0..total.div_ceil(PAGE)).map(|_| gpu.empty(bytes)).collect();
        let table = gpu.bytes(&pages.iter().flat_map(|p| p.to_le_bytes()).collect::<Vec<_>>());
        let (k, v) = (gpu.floats(&self.k), gpu.floats(&self.v));
        gpu.try_run(&[cuda::store(self.element, table, [k, v], heads, [0, total])])?;
        let len = n * c.n_heads * c.v_dim;
        let out = gpu.empty(4 * len);
        let mut args = AttendArgs {
            element: self.element,
            pages: table,
            q: gpu.floats(q),
            out,
            slopes: if c.alibi { gpu.floats(&self.slopes) } else { 0 },
            partial: 0,
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.k_dim,
            v_dim: c.v_dim,
            n,
            start: c.start + first,
            window: c.window,
            scale: self.scale(),
            softcap: c.softcap,
        };
        args.partial = gpu.empty(4 * cuda::partial_len(&args));
        gpu.try_run(&cuda::attend(&args))?;
        Ok(gpu.read(out, len))
    }

    /// The largest error that rounding may make: f32 sums alone, or 16-bit queries and weights on tensor cores.
    pub(crate) fn tolerance(&self) -> f32 {
        let tensor_cores =
            self.element != Cached::Float(Element::F32) && self.case.n > 8 && self.case.k_dim >= 64;
        match (tensor_cores, self.element) {
            (false, _) => 2e-5,
            // Scores of size 1 come from queries rounded to 11 or 8 bits, weights are rounded likewise, and the
            // values they average are of size 1 to 4.
            (true, Cached::Float(Element::Bf16)) => 4.0 * 2.0 / 256.0,
            (true, Cached::Float(_) | Cached::Q8) => 4.0 * 2.0 / 2048.0,
        }
    }
}

/// Values as the cache keeps them; in 8 bits the reference's own cache does that.
fn stored(element: Cached, values: &[f32]) -> Vec<f32> {
    match element {
        Cached::Float(element) => rounded(element, values),
        Cached::Q8 => values.to_vec(),
    }
}
