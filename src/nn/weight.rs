//! Named tensors → weights of the graph, checked against the description.
//!
//! Whatever is odd about how a family stores its weights is undone here, once: the graph sees one form. Every tensor
//! of the checkpoint must be used, or be known as not needed: a tensor that nobody asks for would have changed the
//! numbers.

mod errors;
mod experts;
mod fp8;
mod naming;
mod packed;
mod tensors;

use std::collections::BTreeSet;

use safetensors::Dtype;
use tramontane_models::names::{Part, Prefix};
use tramontane_models::spec::{Architecture, Attention, Norm, NormKind, Qkv, RopeStyle};

use errors::mismatch;
use naming::{prefix, stored_name};

use crate::checkpoint::{Bytes, Checkpoint, TensorData};
use crate::error::{Error, Result};
use crate::ops::{Format, NormWeight, Ops};

pub use naming::untie_stored_head;
pub use packed::Witness;

/// Where in the model a part stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct At {
    /// The layer, where the part belongs to one.
    pub layer: usize,
    /// The expert, where the part belongs to one.
    pub expert: usize,
}

impl At {
    /// In layer `layer`.
    #[must_use]
    pub fn layer(layer: usize) -> Self {
        Self { layer, expert: 0 }
    }
}

/// Takes the weights of one model from a checkpoint to a device.
pub struct Loader<'a, D> {
    device: &'a D,
    checkpoint: &'a Checkpoint,
    architecture: &'a Architecture,
    format: Format,
    prefix: Prefix,
    used: BTreeSet<String>,
    loaded_bytes: u64,
    progress: &'a mut dyn FnMut(u64, u64),
    rehearsal: bool,
    witness: Option<&'a mut dyn Witness<D>>,
    /// Whether what is read now becomes a matrix.
    in_matrix: bool,
}

impl<'a, D: Ops> Loader<'a, D> {
    /// A loader that reports `progress(bytes so far, all bytes)`.
    ///
    /// # Errors
    ///
    /// If the checkpoint holds no embedding under any name that the family uses.
    pub fn new(
        device: &'a D,
        checkpoint: &'a Checkpoint,
        architecture: &'a Architecture,
        format: Format,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let prefix = prefix(architecture, checkpoint)?;
        let (used, loaded_bytes, rehearsal) = (BTreeSet::new(), 0, false);
        let (witness, in_matrix) = (None, false);
        Ok(Self {
            device,
            checkpoint,
            architecture,
            format,
            prefix,
            used,
            loaded_bytes,
            progress,
            rehearsal,
            witness,
            in_matrix,
        })
    }

    /// From now on, `witness` is shown every weight, and matrices come out empty.
    pub fn show(&mut self, witness: &'a mut dyn Witness<D>) {
        self.witness = Some(witness);
    }

    /// From now on, matrices are checked but not taken: they come out empty.
    pub fn rehearse(&mut self) {
        self.rehearsal = true;
    }

    /// The device that the weights go to.
    #[must_use]
    pub fn device(&self) -> &'a D {
        self.device
    }

    /// The model's description.
    #[must_use]
    pub fn architecture(&self) -> &'a Architecture {
        self.architecture
    }

    /// The matrix of `part`, `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// If it is missing or has another shape or an unknown dtype.
    pub fn matrix(&mut self, part: Part, at: At, shape: [usize; 2]) -> Result<D::Weight> {
        if let Some((tensor, format)) = self.packed(part, at) {
            return self.take_packed(part, tensor, format, shape);
        }
        self.in_matrix = true;
        let tensor = self.projection(part, at, "weight", &shape);
        self.in_matrix = false;
        let tensor = tensor?;
        if self.rehearsal {
            return self.device.weight(&hollow(&tensor), Format::Auto);
        }
        let format = self.format_of(part);
        let weight = self
            .device
            .weight(&tensor, format)
            .map_err(|e| e.at(format!("`{}`", tensor.name)).at(&tensor.file))?;
        let name = self.packed_name(part, at);
        let Some(witness) = &mut self.witness else { return Ok(weight) };
        witness.matrix(name, &tensor, &weight)?;
        self.device.weight(&hollow(&tensor), Format::Auto)
    }

    /// Marks a tensor as used, and tells how far loading has come.
    fn mark(&mut self, tensor: &TensorData) {
        // The parts of a fused matrix each come here: its bytes count once.
        if self.used.insert(tensor.name.clone()) {
            self.loaded_bytes += tensor.bytes.len() as u64;
            (self.progress)(self.loaded_bytes, self.checkpoint.total_bytes());
        }
    }

    /// The matrix of `part`, `[rows, cols]`, of which only rows are looked up.
    ///
    /// # Errors
    ///
    /// As [`Loader::matrix`].
    pub fn table(&mut self, part: Part, at: At, shape: [usize; 2]) -> Result<D::Weight> {
        let tensor = self.tensor(part, at, "weight", &shape)?;
        self.device.table(&tensor).map_err(|e| e.at(format!("`{}`", tensor.name)).at(&tensor.file))
    }

    /// The format of `part`: 4 bits are too few for embedding and head, whose errors no later layer mends, and routers
    /// are small but decide.
    fn format_of(&self, part: Part) -> Format {
        match (self.format, part) {
            (Format::Q4, Part::Embed | Part::Head) => Format::Q8,
            (Format::Q4 | Format::Q8, Part::Router) => Format::F32,
            (format, _) => format,
        }
    }

    /// The bias of `part`, `[len]`.
    ///
    /// # Errors
    ///
    /// If it is missing or has another length.
    pub fn bias(&mut self, part: Part, at: At, len: usize) -> Result<D::Buffer> {
        let tensor = self.projection(part, at, "bias", &[len])?;
        self.vector(&tensor, tensor.to_f32()?)
    }

    /// Small weights of `part`, stored with `shape`, after `prepare`; `suffix` is `weight`, `bias`, or empty where the
    /// tensor has none.
    ///
    /// # Errors
    ///
    /// If they are missing, have another shape, or are not finite after `prepare`.
    pub fn values(
        &mut self,
        part: Part,
        at: At,
        suffix: &str,
        shape: &[usize],
        prepare: impl Fn(Vec<f32>) -> Vec<f32>,
    ) -> Result<D::Buffer> {
        let tensor = self.tensor(part, at, suffix, shape)?;
        self.vector(&tensor, prepare(tensor.to_f32()?))
    }

    /// As [`Loader::values`], left in the host's memory as they are stored.
    ///
    /// # Errors
    ///
    /// If they are missing, have another shape, or are not finite.
    pub fn host_values(
        &mut self,
        part: Part,
        at: At,
        suffix: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>> {
        let tensor = self.tensor(part, at, suffix, shape)?;
        let values = tensor.to_f32()?;
        check_finite(&tensor, &values)?;
        Ok(values)
    }

    /// The weights of the norm `part` over rows of `width`.
    ///
    /// # Errors
    ///
    /// If they are missing, have another length, or are not finite.
    pub fn norm(
        &mut self,
        part: Part,
        at: At,
        norm: &Norm,
        width: usize,
    ) -> Result<NormWeight<D::Buffer>> {
        let tensor = self.tensor(part, at, "weight", &[width])?;
        let mut values = tensor.to_f32()?;
        let (centred, has_bias) = match norm.kind {
            NormKind::Rms => (false, false),
            NormKind::Layer { bias, minus_one } => {
                if minus_one {
                    values.iter_mut().for_each(|w| *w += 1.0);
                }
                (true, bias)
            }
        };
        let weight = self.vector(&tensor, values)?;
        let bias = if has_bias { Some(self.bias(part, at, width)?) } else { None };
        Ok(NormWeight { weight, bias, width, eps: norm.eps, centred })
    }

    /// The norm `part`, where the description has one.
    ///
    /// # Errors
    ///
    /// As [`Loader::norm`].
    pub fn maybe_norm(
        &mut self,
        part: Part,
        at: At,
        norm: Option<&Norm>,
        width: usize,
    ) -> Result<Option<NormWeight<D::Buffer>>> {
        norm.map(|norm| self.norm(part, at, norm, width)).transpose()
    }

    /// Whether the checkpoint holds the weight of `part`.
    #[must_use]
    pub fn has(&self, part: Part) -> bool {
        self.name(part, At::default(), "weight")
            .is_some_and(|name| self.checkpoint.get(&name).is_some())
    }

    /// Marks the stored weight of `part` as used, although it is not taken to the device.
    pub fn skip(&mut self, part: Part) {
        self.used.extend(self.name(part, At::default(), "weight"));
    }

    /// Checks that nothing in the checkpoint was left over.
    ///
    /// # Errors
    ///
    /// If a tensor was not used and is not known as not needed.
    pub fn finish(self) -> Result<()> {
        let names = self.architecture.stored.names;
        let n_layers = self.architecture.layers.len();
        let extra = n_layers..n_layers + self.architecture.stored.extra_layers;
        let layer = |name: &str| name.split('.').find_map(|piece| piece.parse::<usize>().ok());
        let is_extra = |name: &str| layer(name).is_some_and(|layer| extra.contains(&layer));
        let left: Vec<&str> = self
            .checkpoint
            .names()
            .filter(|n| !self.used.contains(*n) && !names.is_unused(n) && !is_extra(n))
            .collect();
        let Some(first) = left.first() else { return Ok(()) };
        let what = match layer(first) {
            Some(layer) if layer >= n_layers => format!(
                "tensor `{first}` belongs to layer {layer}, but the configuration says {n_layers} layers (`{}`)",
                if names.prefixes == [("", "")] { "n_layers" } else { "num_hidden_layers" }
            ),
            _ => format!("tensor `{first}` is not used by {}", self.architecture.family),
        };
        let others =
            if left.len() > 1 { format!(" (and {} more)", left.len() - 1) } else { String::new() };
        let file = self.checkpoint.get(first).map(|t| t.file.to_string()).unwrap_or_default();
        Err(Error::bad_model(what + &others)
            .at(file)
            .so("the model would compute something else than its authors meant")
            .hint("the configuration and weights of one and the same revision"))
    }

    fn name(&self, part: Part, at: At, suffix: &str) -> Option<String> {
        let names = self.architecture.stored.names;
        stored_name(names, self.checkpoint, part, self.prefix, at, suffix)
    }

    /// The weight or bias of a projection in the form of the graph: plain numbers, `shape`, halves rotated together.
    fn projection(
        &mut self,
        part: Part,
        at: At,
        suffix: &str,
        shape: &[usize],
    ) -> Result<TensorData> {
        let stored = self.architecture.stored;
        let is_qkv = [Part::Q, Part::K, Part::V].contains(&part);
        let attention = self.architecture.layers.get(at.layer).and_then(|layer| layer.attention());
        if let Some(tensor) = self.part_of_experts(part, at, shape)? {
            return Ok(tensor);
        }
        let tensor = match attention {
            Some(attention) if is_qkv && stored.qkv != Qkv::Separate => {
                self.part_of_qkv(part, at, suffix, shape, attention)?
            }
            _ => self.maybe_transposed(part, at, suffix, shape)?,
        };
        match attention {
            Some(attention)
                if is_qkv
                    && part != Part::V
                    && stored.qk_rows == RopeStyle::Interleaved
                    && !self.rehearsal =>
            {
                Ok(tensors::halves_from_neighbours(&tensor, attention.head_dim))
            }
            _ => Ok(tensor),
        }
    }

    /// The rows of queries, keys or values out of the matrix that holds all three.
    fn part_of_qkv(
        &mut self,
        part: Part,
        at: At,
        suffix: &str,
        shape: &[usize],
        attention: &Attention,
    ) -> Result<TensorData> {
        let mut all = shape.to_vec();
        all[0] = attention.q_dim() + 2 * attention.kv_dim();
        let fused = self.maybe_transposed(Part::Qkv, at, suffix, &all)?;
        if self.rehearsal {
            return Ok(fused);
        }
        let by_group = self.architecture.stored.qkv == Qkv::ByGroup;
        Ok(tensors::rows_of_qkv(&fused, part, attention, by_group))
    }

    /// The tensor with `shape`, whichever way round it is stored.
    fn maybe_transposed(
        &mut self,
        part: Part,
        at: At,
        suffix: &str,
        shape: &[usize],
    ) -> Result<TensorData> {
        let of_embedding = [Part::Embed, Part::Head, Part::LearnedPositions].contains(&part);
        match shape {
            [rows, cols] if self.architecture.stored.transposed && !of_embedding => {
                let stored = self.tensor(part, at, suffix, &[*cols, *rows])?;
                Ok(if self.rehearsal { stored } else { tensors::transposed(&stored) })
            }
            _ => self.tensor(part, at, suffix, shape),
        }
    }

    /// The tensor as plain numbers; `shape` is how it is stored.
    fn tensor(&mut self, part: Part, at: At, suffix: &str, shape: &[usize]) -> Result<TensorData> {
        let tensor = self.stored(part, at, suffix, shape)?;
        if tensor.dtype != Dtype::F8_E4M3 {
            tensor.check_is_float()?;
            return Ok(tensor.clone());
        }
        let scale = self.scale(tensor, &tensor.name)?;
        self.scaled(tensor, scale, self.architecture.stored.fp8_block)
    }

    /// The numbers of a matrix in 8-bit floats, each multiplied by the scale of its block.
    fn scaled(
        &self,
        tensor: &TensorData,
        scale: &TensorData,
        block: Option<[usize; 2]>,
    ) -> Result<TensorData> {
        let grid = fp8::Grid::new(tensor, scale, block)?;
        if self.rehearsal {
            return Ok(hollow(tensor));
        }
        fp8::dequantise(tensor, scale, grid, self.format == Format::F32)
    }

    /// The tensor as it is stored, marked as used.
    fn stored(
        &mut self,
        part: Part,
        at: At,
        suffix: &str,
        shape: &[usize],
    ) -> Result<&'a TensorData> {
        let Some(name) = self.name(part, at, suffix) else {
            return Err(Error::not_supported(format!(
                "{} has no name for {part:?} in this format",
                self.architecture.family
            )));
        };
        let Some(tensor) = self.checkpoint.get(&name) else {
            return Err(self.missing(part, &name));
        };
        if tensor.shape != shape {
            return Err(mismatch(part, tensor, shape));
        }
        self.mark(tensor);
        self.show_stored(tensor)?;
        Ok(tensor)
    }

    /// The scale of the tensor `name` in 8-bit floats, marked as used.
    fn scale(&mut self, tensor: &TensorData, name: &str) -> Result<&'a TensorData> {
        let names = match name.strip_suffix("weight") {
            Some(module) => ["weight_scale_inv", "weight_scale", "qscale_weight"]
                .map(|suffix| format!("{module}{suffix}")),
            None => ["_scale_inv", "_scale", "_qscale"].map(|suffix| format!("{name}{suffix}")),
        };
        let Some(scale) = names.iter().find_map(|name| self.checkpoint.get(name)) else {
            return Err(tensor
                .error(format!(
                    "`{name}` is stored in 8-bit floats, but its scale `{}` is missing",
                    names[0]
                ))
                .so("without it every number would be wrong"));
        };
        self.used.insert(scale.name.clone());
        self.show_stored(scale)?;
        Ok(scale)
    }

    /// Shows a tensor to the witness that is not read for a matrix.
    fn show_stored(&mut self, tensor: &TensorData) -> Result<()> {
        match &mut self.witness {
            Some(witness) if !self.in_matrix => witness.stored(tensor),
            _ => Ok(()),
        }
    }

    fn missing(&self, part: Part, name: &str) -> Error {
        let n_layers = self.architecture.layers.len();
        let mut what = format!("tensor `{name}` is missing");
        if part == Part::Head {
            what += ", and the configuration does not tie the head to the embedding (`tie_word_embeddings`)";
        } else if name.contains("layers.") {
            what += &format!("; the configuration says {n_layers} layers");
        }
        let files: Vec<String> =
            self.checkpoint.files().iter().map(|file| file.path.display().to_string()).collect();
        Error::bad_model(what)
            .at(files.join(", "))
            .hint("fetching the weights again: a file may be incomplete")
    }

    fn vector(&self, tensor: &TensorData, values: Vec<f32>) -> Result<D::Buffer> {
        check_finite(tensor, &values)?;
        let mut buffer = self.device.buffer(values.len())?;
        self.device.write(&values, &mut buffer)?;
        Ok(buffer)
    }
}

/// A matrix without rows in the place of `tensor`.
fn hollow(tensor: &TensorData) -> TensorData {
    let mut hollow = tensor.clone();
    hollow.shape = vec![0, tensor.shape.last().copied().unwrap_or(0)];
    (hollow.dtype, hollow.bytes) = (Dtype::F32, Bytes::from(Vec::new()));
    hollow
}

fn check_finite(tensor: &TensorData, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(tensor.error(format!(
            "`{}` holds {} at {i}, expected finite numbers",
            tensor.name, values[i]
        ))),
    }
}
