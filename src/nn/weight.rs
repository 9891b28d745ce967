//! Named tensors → weights of the graph, checked against the description.
//!
//! Whatever is odd about how a family stores its weights is undone here, once: the graph sees one form. Every tensor
//! of the checkpoint must be used, or be known as not needed: a tensor that nobody asks for would have changed the
//! numbers.

mod experts;
mod fp8;
mod tensors;

use std::collections::BTreeSet;

use safetensors::Dtype;
use tramontane_models::names::{Names, Part, Prefix};
use tramontane_models::spec::{Architecture, Attention, Norm, NormKind, Qkv, RopeStyle};

use crate::checkpoint::{Bytes, Checkpoint, TensorData};
use crate::error::{Error, Result};
use crate::ops::{Format, NormWeight, Ops};

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

/// Is shown every weight while it is taken: what writes packed weights to a file.
pub trait Witness<D: Ops> {
    /// A matrix on the device, the name that it has when it is packed (without its format), and what it came from.
    ///
    /// # Errors
    ///
    /// If the witness cannot go on.
    fn matrix(&mut self, name: String, from: &TensorData, weight: &D::Weight) -> Result<()>;

    /// A tensor that is used as it is stored.
    ///
    /// # Errors
    ///
    /// If the witness cannot go on.
    fn stored(&mut self, tensor: &TensorData) -> Result<()>;
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

    /// The name of the matrix of `part` when it is packed, without its format: that of the family, if it has one.
    fn packed_name(&self, part: Part, at: At) -> String {
        let names = self.architecture.stored.names;
        let own = names.modules(part, self.prefix, at.layer, at.expert).next();
        own.unwrap_or_else(|| format!("{part:?}.{}.{}", at.layer, at.expert))
    }

    /// The packed matrix of `part`, if the checkpoint has one.
    fn packed(&self, part: Part, at: At) -> Option<(&'a TensorData, Format)> {
        let name = self.packed_name(part, at);
        Format::ALL.iter().find_map(|format| {
            let tensor = self.checkpoint.get(&format!("{name}.{}", format.packed_suffix()))?;
            Some((tensor, *format))
        })
    }

    /// A packed matrix: used where it is.
    fn take_packed(
        &mut self,
        part: Part,
        tensor: &'a TensorData,
        format: Format,
        shape: [usize; 2],
    ) -> Result<D::Weight> {
        let wanted = self.format_of(part);
        if ![Format::Auto, format].contains(&wanted) {
            return Err(tensor
                .error(format!("the weights are packed as {format} and cannot become {wanted}"))
                .hint("the model they were made from, or no --format"));
        }
        self.mark(tensor);
        let weight = self.device.packed_weight(tensor, format, shape)?;
        if self.rehearsal { self.device.weight(&hollow(tensor), Format::Auto) } else { Ok(weight) }
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

/// What stands before the names of the text model in this checkpoint.
fn prefix(architecture: &Architecture, checkpoint: &Checkpoint) -> Result<Prefix> {
    let names = architecture.stored.names;
    let embed =
        |prefix| stored_name(names, checkpoint, Part::Embed, prefix, At::default(), "weight");
    let is_there = |prefix: &&Prefix| {
        let stored = embed(**prefix).is_some_and(|name| checkpoint.get(&name).is_some());
        stored || has_packed(architecture, checkpoint, Part::Embed, **prefix)
    };
    names.prefixes.iter().find(is_there).copied().ok_or_else(|| {
        let expected = names.prefixes.first().and_then(|p| embed(*p)).unwrap_or_default();
        let some: Vec<&str> = checkpoint.names().take(3).collect();
        let some = match some[..] {
            [] => "no tensor at all".to_owned(),
            _ => format!("`{}`", some.join("`, `")),
        };
        Error::bad_model(format!("tensor `{expected}` is missing; the file begins with {some}"))
            .at(checkpoint.place())
            .hint("the weights that belong to this config.json")
    })
}

/// Whether the checkpoint has the matrix of `part` packed.
fn has_packed(
    architecture: &Architecture,
    checkpoint: &Checkpoint,
    part: Part,
    prefix: Prefix,
) -> bool {
    let names = architecture.stored.names;
    Format::ALL.iter().any(|format| {
        let suffix = format.packed_suffix();
        stored_name(names, checkpoint, part, prefix, At::default(), &suffix)
            .is_some_and(|name| checkpoint.get(&name).is_some())
    })
}

/// The name of a tensor of `part` in the checkpoint, or the one it should have; `None` if the family has no such part.
fn stored_name(
    names: &Names,
    checkpoint: &Checkpoint,
    part: Part,
    prefix: Prefix,
    at: At,
    suffix: &str,
) -> Option<String> {
    let with_suffix =
        |module: String| if suffix.is_empty() { module } else { format!("{module}.{suffix}") };
    let mut all = names.modules(part, prefix, at.layer, at.expert).map(with_suffix).peekable();
    let usual = all.peek().cloned();
    all.find(|name| checkpoint.get(name).is_some()).or(usual)
}

/// A matrix without rows in the place of `tensor`.
fn hollow(tensor: &TensorData) -> TensorData {
    let mut hollow = tensor.clone();
    hollow.shape = vec![0, tensor.shape.last().copied().unwrap_or(0)];
    (hollow.dtype, hollow.bytes) = (Dtype::F32, Bytes::from(Vec::new()));
    hollow
}

/// Unties the head where the checkpoint stores another matrix than the embedding, and says so.
///
/// Some repositories say `tie_word_embeddings` by oversight; transformers 5 uses the stored head too.
#[must_use]
pub fn untie_stored_head(
    architecture: &mut Architecture,
    checkpoint: &Checkpoint,
) -> Option<String> {
    if !architecture.head.tied {
        return None;
    }
    let prefix = prefix(architecture, checkpoint).ok()?;
    if has_packed(architecture, checkpoint, Part::Head, prefix) {
        // It was packed beside the embedding because it differs from it, and the user was told then.
        architecture.head.tied = false;
        return None;
    }
    let stored = |part| {
        let names = architecture.stored.names;
        checkpoint.get(&stored_name(names, checkpoint, part, prefix, At::default(), "weight")?)
    };
    let (head, embed) = (stored(Part::Head)?, stored(Part::Embed)?);
    if head.shape == embed.shape && head.dtype == embed.dtype && *head.bytes == *embed.bytes {
        return None;
    }
    architecture.head.tied = false;
    Some(format!(
        "`{}` differs from the embedding although `tie_word_embeddings` is true: the stored head is used",
        head.name
    ))
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

/// The error for a tensor of another shape, with the configuration's keys that decide the shape.
fn mismatch(part: Part, tensor: &TensorData, expected: &[usize]) -> Error {
    let keys = match part {
        Part::Embed | Part::Head => "`vocab_size` and `hidden_size`",
        Part::K | Part::V => "`num_key_value_heads`, `head_dim` and `hidden_size`",
        Part::Q | Part::O => "`num_attention_heads`, `head_dim` and `hidden_size`",
        Part::Gate
        | Part::Up
        | Part::Down
        | Part::ExpertGate
        | Part::ExpertUp
        | Part::ExpertDown => "`intermediate_size` and `hidden_size`",
        Part::AllGateUp | Part::AllUp | Part::AllDown => {
            "`n_routed_experts`, `moe_intermediate_size` and `hidden_size`"
        }
        Part::SharedGate | Part::SharedUp | Part::SharedDown => {
            "`n_shared_experts`, `moe_intermediate_size` or `moe_shared_expert_intermediate_size`, and `hidden_size`"
        }
        Part::Router | Part::RouterCorrection => "the number of experts and `hidden_size`",
        Part::QLatent | Part::QLatentNorm => "`q_lora_rank` and `hidden_size`",
        Part::QFromLatent => {
            "`num_attention_heads`, `qk_nope_head_dim`, `qk_rope_head_dim` and `q_lora_rank`"
        }
        Part::KvLatent | Part::KvLatentNorm => {
            "`kv_lora_rank`, `qk_rope_head_dim` and `hidden_size`"
        }
        Part::KvFromLatent => {
            "`num_attention_heads`, `qk_nope_head_dim`, `v_head_dim` and `kv_lora_rank`"
        }
        Part::MambaIn
        | Part::MambaOut
        | Part::MambaConv
        | Part::MambaDecay
        | Part::MambaSkip
        | Part::MambaStep
        | Part::MambaNorm => {
            "the number and width of the Mamba heads, `n_groups`, the state's size and `conv_kernel`"
        }
        Part::Qkv => "the numbers of heads and `hidden_size`",
        Part::QNorm | Part::KNorm => "`head_dim`",
        Part::EmbedNorm
        | Part::LearnedPositions
        | Part::FinalNorm
        | Part::MixerNorm
        | Part::PostMixerNorm
        | Part::MlpNorm
        | Part::PostMlpNorm => "`hidden_size`",
    };
    let transposed = tensor.shape.len() == 2 && expected == [tensor.shape[1], tensor.shape[0]];
    let error = tensor.error(format!(
        "`{}` has shape {:?}, expected {expected:?} from {keys}",
        tensor.name, tensor.shape
    ));
    if transposed {
        error.so("the matrix seems to be transposed")
    } else {
        error.hint("the configuration and weights of one and the same revision")
    }
}
