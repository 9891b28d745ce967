//! Each operation of the graph as launches of kernels.
//!
//! Shapes come from the graph, which took them from checked tensors; an assertion at each launch keeps a mistake of
//! ours from becoming an access past the end of a buffer.

use std::sync::PoisonError;

use tramontane_kernels::cpu::elementwise as element;
use tramontane_kernels::cuda::{
    self as kernels, AttendArgs, Element, Input, Launch, MAX_TOP, Target,
};
use tramontane_models::spec::{self, Activation, Mixer, RopeStyle};

use super::weight::Layout;
use super::{
    Cuda, CudaBuffer, CudaExperts, CudaKv, CudaState, CudaWeight, MAX_HEAD, at_least, mamba,
    too_wide,
};
use crate::checkpoint::TensorData;
use crate::error::Result;
use crate::ops::cpu::kernel_activation;
use crate::ops::{
    AttendShape, Blocks, Format, Heads, KvShape, MambaWeights, NormWeight, Ops, Rotation, Stride,
};

impl Ops for Cuda {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type Kv = CudaKv;
    type State = CudaState;
    type Experts = CudaExperts;

    const CHUNK: usize = 256;

    fn step(&self, n: usize, operations: impl FnOnce() -> Result<()>) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernels of a prompt take longer than their launches.
        if n == 1 { self.gpu.collect(operations) } else { operations() }
    }

    fn buffer(&self, len: usize) -> Result<CudaBuffer> {
        let memory = self.gpu.alloc(4 * len)?;
        self.gpu.clear(&memory)?;
        Ok(CudaBuffer { memory, len })
    }

    fn room(&self, buffer: &CudaBuffer) -> usize {
        buffer.len
    }

    fn write(&self, values: &[f32], buffer: &mut CudaBuffer) -> Result<()> {
        self.gpu.upload(values, &buffer.memory, 0)
    }

    fn read(&self, buffer: &CudaBuffer, len: usize, out: &mut Vec<f32>) -> Result<()> {
        let start = out.len();
        out.resize(start + len, 0.0);
        self.gpu.download(&buffer.memory, 0, &mut out[start..])
    }

    fn largest(
        &self,
        buffer: &CudaBuffer,
        len: usize,
        k: usize,
    ) -> Result<Option<Vec<(u32, f32)>>> {
        assert!(len <= buffer.len, "largest past the end of a buffer");
        if k == 0 || k > len.min(MAX_TOP) {
            return Ok(None);
        }
        let mut scratch = self.scratch();
        let half = kernels::top_bytes(len, k);
        let memory = at_least(&self.gpu, &mut scratch.largest, 2 * half)?;
        let halves = [memory.address(), memory.address() + half as u64];
        let (launches, side) = kernels::top(buffer.at(), len, k, halves);
        launches.iter().try_for_each(|launch| self.gpu.launch(launch))?;
        let mut found = vec![0u32; 2 * k];
        self.gpu.download(memory, side * half, &mut found)?;
        let (values, places) = found.split_at(k);
        Ok(Some(places.iter().copied().zip(values.iter().map(|v| f32::from_bits(*v))).collect()))
    }

    fn weight(&self, tensor: &TensorData, format: Format) -> Result<CudaWeight> {
        CudaWeight::upload(&self.gpu, &self.host, tensor, format)
    }

    fn table(&self, tensor: &TensorData) -> Result<CudaWeight> {
        CudaWeight::upload(&self.gpu, &self.host, tensor, Format::Auto)
    }

    fn packed_weight(
        &self,
        tensor: &TensorData,
        format: Format,
        shape: [usize; 2],
    ) -> Result<CudaWeight> {
        CudaWeight::upload_packed(&self.gpu, &self.host, tensor, format, shape)
    }

    fn kv(&self, shape: KvShape) -> Result<CudaKv> {
        if shape.k_dim.max(shape.v_dim) > MAX_HEAD {
            return Err(too_wide(shape.k_dim.max(shape.v_dim)));
        }
        Ok(CudaKv::new(self.gpu.clone(), shape))
    }

    fn embed(&self, table: &CudaWeight, ids: &[u32], x: &mut CudaBuffer) -> Result<()> {
        assert!(ids.len() * table.cols <= x.len, "embed past the end of a buffer");
        assert!(ids.iter().all(|&id| (id as usize) < table.rows), "an id outside the vocabulary");
        let mut scratch = self.scratch();
        let at = self.to_device(&mut scratch.ids, ids)?;
        let (from, n, width) = (table.memory.address(), ids.len(), table.cols);
        self.gpu.launch(&match table.layout {
            Layout::Dense(element) => kernels::embed(element, from, at, x.at(), n, width),
            Layout::Packed(format) => kernels::embed_packed(format, from, at, x.at(), n, width),
        })
    }

    fn norm(
        &self,
        norm: &NormWeight<CudaBuffer>,
        x: &CudaBuffer,
        n: usize,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.norm_at(norm, None, x, out, n)
    }

    fn add_norm(
        &self,
        norm: &NormWeight<CudaBuffer>,
        y: &CudaBuffer,
        x: &mut CudaBuffer,
        n: usize,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.norm_at(norm, Some(y), x, out, n)
    }

    fn norm_in_place(
        &self,
        norm: &NormWeight<CudaBuffer>,
        x: &mut CudaBuffer,
        n: usize,
    ) -> Result<()> {
        self.norm_at(norm, None, x, x, n)
    }

    fn linear(
        &self,
        ws: &[&CudaWeight],
        x: &CudaBuffer,
        n: usize,
        outs: &mut [&mut CudaBuffer],
    ) -> Result<()> {
        let fits = |(w, out): (&&CudaWeight, &&mut CudaBuffer)| {
            n * w.cols <= x.len && n * w.rows <= out.len
        };
        assert!(ws.iter().zip(&*outs).all(fits), "linear past the end of a buffer");
        let mut scratch = self.scratch();
        // The type to which the inputs have been rounded.
        let (mut ready, mut outs) = (None, outs.iter().map(|out| out.at()));
        for ws in ws.chunk_by(|a, b| a.layout == b.layout) {
            let (element, bytes) = rounding(ws[0], n);
            let rounded = at_least(&self.gpu, &mut scratch.rounded, bytes)?.address();
            if bytes > 0 && ready != Some(element) {
                self.gpu.launch(&kernels::round(element, x.at(), rounded, n * ws[0].cols))?;
                ready = Some(element);
            }
            let outs: Vec<u64> = outs.by_ref().take(ws.len()).collect();
            for launch in products(ws, [x.at(), rounded], &outs, n) {
                self.gpu.launch(&launch)?;
            }
        }
        Ok(())
    }

    fn experts(
        &self,
        spec: &spec::Experts,
        correction: &[f32],
        matrices: &[Vec<&CudaWeight>],
    ) -> Result<Option<CudaExperts>> {
        self.experts_of(spec, correction, matrices)
    }

    fn mix_experts(
        &self,
        experts: &CudaExperts,
        outputs: &CudaBuffer,
        x: &CudaBuffer,
        n: usize,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.mix(experts, outputs, x, n, out)
    }

    fn add_bias(
        &self,
        bias: &CudaBuffer,
        width: usize,
        x: &mut CudaBuffer,
        n: usize,
    ) -> Result<()> {
        assert!(width <= bias.len && n * width <= x.len, "add_bias past the end of a buffer");
        self.gpu.launch(&kernels::add_bias(bias.at(), x.at(), width, n))
    }

    fn add(&self, y: &CudaBuffer, x: &mut CudaBuffer, len: usize) -> Result<()> {
        assert!(len <= y.len && len <= x.len, "add past the end of a buffer");
        self.gpu.launch(&kernels::add(y.at(), x.at(), len))
    }

    fn scale_rows(&self, factors: &[f32], width: usize, x: &mut CudaBuffer) -> Result<()> {
        assert!(factors.len() * width <= x.len, "scale_rows past the end of a buffer");
        let mut scratch = self.scratch();
        let at = self.to_device(&mut scratch.factors, factors)?;
        self.gpu.launch(&kernels::scale_rows(at, x.at(), width, factors.len()))
    }

    fn rotate(
        &self,
        rotation: &Rotation<'_, CudaBuffer>,
        heads: Heads,
        x: &mut CudaBuffer,
        n: usize,
    ) -> Result<()> {
        assert!(n * heads.n_heads * heads.head_dim <= x.len, "rotate past the end of a buffer");
        let (rope, angles) = (rope(rotation, heads), [rotation.cos.at(), rotation.sin.at()]);
        self.gpu.launch(&kernels::rotate(&rope, angles, x.at(), n))
    }

    fn rotate_both(
        &self,
        rotation: &Rotation<'_, CudaBuffer>,
        heads: Heads,
        q: &mut CudaBuffer,
        n_kv_heads: usize,
        k: &mut CudaBuffer,
        n: usize,
    ) -> Result<()> {
        let row = |n_heads: usize| n * n_heads * heads.head_dim;
        let fits = row(heads.n_heads) <= q.len && row(n_kv_heads) <= k.len;
        assert!(fits, "rotate past the end of a buffer");
        let (rope, angles) = (rope(rotation, heads), [rotation.cos.at(), rotation.sin.at()]);
        self.gpu.launch(&kernels::rotate_both(&rope, angles, q.at(), k.at(), n_kv_heads, n))
    }

    fn store(
        &self,
        kv: &mut CudaKv,
        k: &CudaBuffer,
        v: &CudaBuffer,
        n: usize,
        start: usize,
    ) -> Result<()> {
        let heads = kv.heads();
        let rows = n * heads.n_kv_heads;
        let fits = rows * heads.k_dim <= k.len && rows * heads.v_dim <= v.len;
        assert!(fits, "store past the end of a buffer");
        kv.prepare(start, start + n)?;
        let launch = kernels::store(kv.element(), kv.table()?, [k.at(), v.at()], heads, [start, n]);
        self.gpu.launch(&launch)
    }

    fn attend(
        &self,
        shape: &AttendShape,
        q: &CudaBuffer,
        n: usize,
        start: usize,
        kv: &CudaKv,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let rows = n * shape.n_heads;
        let fits = rows * shape.k_dim <= q.len && rows * shape.v_dim <= out.len;
        assert!(fits, "attend past the end of a buffer");
        let mut scratch = self.scratch();
        let slopes = match &shape.alibi {
            None => 0,
            Some(slopes) => self.slopes(&mut scratch, slopes)?,
        };
        let mut args = AttendArgs {
            element: kv.element(),
            pages: kv.table()?,
            q: q.at(),
            out: out.at(),
            slopes,
            partial: 0,
            n_heads: shape.n_heads,
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.k_dim,
            v_dim: shape.v_dim,
            n,
            start,
            window: shape.window,
            scale: shape.scale,
            softcap: None,
        };
        let partial = 4 * kernels::partial_len(&args);
        args.partial = at_least(&self.gpu, &mut scratch.partial, partial)?.address();
        for launch in kernels::attend(&args) {
            self.gpu.launch(&launch)?;
        }
        Ok(())
    }

    fn copy_blocks(&self, b: &Blocks, x: &CudaBuffer, out: &mut CudaBuffer) -> Result<()> {
        let end = |stride: Stride, count: usize| {
            count.checked_sub(1).map_or(0, |last| stride.start + last * stride.step + b.width)
        };
        let fits =
            end(b.from, b.count.div_ceil(b.repeat)) <= x.len && end(b.to, b.count) <= out.len;
        assert!(fits, "copy_blocks past the end of a buffer");
        let (from, to) = ((b.from.start, b.from.step), (b.to.start, b.to.step));
        let sizes = [b.width, b.count, b.repeat];
        self.gpu.launch(&kernels::copy_blocks(x.at(), out.at(), sizes, from, to))
    }

    fn runs(&self, mixer: &Mixer) -> bool {
        match mixer {
            Mixer::Attention(_) => true,
            Mixer::Latent(shape) => shape.k_dim().max(shape.v_dim) <= MAX_HEAD,
            Mixer::Mamba(shape) => mamba::fits(shape),
        }
    }

    fn state(&self, shape: &spec::Mamba) -> Result<CudaState> {
        Ok(CudaState::new(shape))
    }

    fn mamba(
        &self,
        shape: &spec::Mamba,
        weights: &MambaWeights<CudaBuffer>,
        x: &mut CudaBuffer,
        n: usize,
        state: &mut CudaState,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.recur(shape, weights, x, n, state, out)
    }

    fn gate(
        &self,
        act: Activation,
        up: &CudaBuffer,
        gate: &mut CudaBuffer,
        len: usize,
    ) -> Result<()> {
        assert!(len <= up.len && len <= gate.len, "gate past the end of a buffer");
        self.gpu.launch(&kernels::gate(kernel_activation(act), up.at(), gate.at(), len))
    }

    fn activate(&self, act: Activation, x: &mut CudaBuffer, len: usize) -> Result<()> {
        assert!(len <= x.len, "activate past the end of a buffer");
        self.gpu.launch(&kernels::activate(kernel_activation(act), x.at(), len))
    }

    fn gather(
        &self,
        x: &CudaBuffer,
        width: usize,
        rows: &[usize],
        out: &mut CudaBuffer,
    ) -> Result<()> {
        assert!(
            rows.iter().all(|row| (row + 1) * width <= x.len),
            "gather past the end of a buffer"
        );
        assert!(rows.len() * width <= out.len, "gather past the end of a buffer");
        let mut scratch = self.scratch();
        let at = self.to_device(&mut scratch.rows, &numbers(rows))?;
        self.gpu.launch(&kernels::gather(x.at(), at, out.at(), width, rows.len()))
    }

    fn scatter_add(
        &self,
        y: &CudaBuffer,
        width: usize,
        rows: &[usize],
        factors: &[f32],
        x: &mut CudaBuffer,
    ) -> Result<()> {
        assert!(
            rows.iter().all(|row| (row + 1) * width <= x.len),
            "scatter_add past the end of a buffer"
        );
        assert!(rows.len() * width <= y.len, "scatter_add past the end of a buffer");
        let mut scratch = self.scratch();
        let indices = self.to_device(&mut scratch.rows, &numbers(rows))?;
        let factors = self.to_device(&mut scratch.factors, factors)?;
        self.gpu.launch(&kernels::scatter_add(y.at(), indices, factors, x.at(), width, rows.len()))
    }
}

/// The rotation as the kernels take it.
fn rope(rotation: &Rotation<'_, CudaBuffer>, heads: Heads) -> element::Rope {
    let Heads { n_heads, head_dim, offset } = heads;
    let style = match rotation.style {
        RopeStyle::Halves => element::RopeStyle::Halves,
        RopeStyle::Interleaved => element::RopeStyle::Interleaved,
    };
    element::Rope { n_heads, head_dim, offset, rotary_dim: rotation.rotary_dim, style }
}

/// To which type the inputs of a product are rounded, and how many bytes that takes; none where they are not.
fn rounding(w: &CudaWeight, n: usize) -> (Element, usize) {
    match w.layout {
        Layout::Dense(element) => (element, kernels::rounded_bytes(element, n, w.cols)),
        Layout::Packed(_) => (Element::F16, kernels::rounded_bytes(Element::F16, n, w.cols)),
    }
}

/// The launches of `outs[i][t] = ws[i] · x[t]`, where the inputs have been rounded as [`rounding`] says; all matrices have
/// one layout.
fn products(ws: &[&CudaWeight], [x, rounded]: [u64; 2], outs: &[u64], n: usize) -> Vec<Launch> {
    let (cols, pairs) = (ws[0].cols, ws.iter().zip(outs));
    let target =
        |(w, out): (&&CudaWeight, &u64)| Target { w: w.memory.address(), out: *out, rows: w.rows };
    let targets: Vec<Target> = pairs.map(target).collect();
    let input = Input { x, rounded, n, cols };
    match ws[0].layout {
        Layout::Dense(element) => kernels::matmul(element, input, &targets),
        Layout::Packed(format) => kernels::matmul_packed(format, input, &targets),
    }
}

/// Row numbers as the kernels take them; they are below the row count of a buffer, which fits.
fn numbers(rows: &[usize]) -> Vec<u32> {
    rows.iter().map(|row| *row as u32).collect()
}
