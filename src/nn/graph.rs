//! The whole graph, and the state of a sequence that passes through it.
//!
//! [`Graph`] is immutable and shared; [`Sequence`] holds all that changes: what each layer remembers and the
//! buffers. A prompt passes in chunks of [`Ops::CHUNK`] tokens; what a token computes does not depend on how its prompt was
//! cut into chunks.

use tramontane_models::spec::{Architecture, Mixer, RopeScaling};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::block::{self, Block};
use crate::nn::linear::Linear;
use crate::nn::mixer::MemoryOf;
use crate::nn::position::Frequencies;
use crate::nn::weight::Loader;
use crate::ops::{Format, KvFormat, NormWeight, Ops, Rotation};

mod weights;

use weights::Weights;
pub use weights::{rehearse, show_weights};

/// Rows of logits that are computed together when all are wanted.
const LOGIT_ROWS: usize = 32;

/// Which rows of logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// None: the tokens only enter the cache.
    None,
    /// The last token's.
    Last,
    /// Of the last token's so many of the largest, if they are clearly these; else the whole row.
    Largest(usize),
    /// Every token's.
    All,
}

/// Logits that came back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logits {
    /// Rows of `[vocab]`, or the largest of one row.
    pub values: Vec<f32>,
    /// Of which ids `values` are, in ascending order, where they are the largest of a row; else empty.
    pub ids: Vec<u32>,
}

impl Logits {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.values.clear();
        self.ids.clear();
    }
}

/// A model's weights on a device, and the order in which they are used.
pub struct Graph<D: Ops> {
    device: D,
    architecture: Architecture,
    embed: Linear<D>,
    embed_norm: Option<NormWeight<D::Buffer>>,
    learned_positions: Option<D::Weight>,
    /// The kinds of rotation that layers use; most models have one.
    rotations: Vec<Frequencies>,
    blocks: Vec<Block<D>>,
    final_norm: NormWeight<D::Buffer>,
    /// `None`: the embedding is the head.
    head: Option<Linear<D>>,
}

/// What one chunk of tokens has in common: its place in the sequence and the angles of its positions.
pub struct Step<D: Ops> {
    /// Tokens in the chunk.
    pub n: usize,
    /// Position of the first.
    pub start: usize,
    angles: Vec<Angles<D>>,
}

/// Cosines and sines of one kind of rotation.
struct Angles<D: Ops> {
    cos: D::Buffer,
    sin: D::Buffer,
    rotary_dim: usize,
    style: tramontane_models::spec::RopeStyle,
}

impl<D: Ops> Step<D> {
    /// The rotations of kind number `kind`.
    #[must_use]
    pub fn rotation(&self, kind: usize) -> Rotation<'_, D::Buffer> {
        let Angles { cos, sin, rotary_dim, style } = &self.angles[kind];
        Rotation { cos, sin, rotary_dim: *rotary_dim, style: *style }
    }
}

/// Everything that changes while a sequence grows.
pub struct Sequence<D: Ops> {
    /// One per block.
    memory: Vec<MemoryOf<D>>,
    len: usize,
    buffers: Option<Buffers<D>>,
    /// Host memory for angles and ids, kept so that a step allocates nothing.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Buffers for chunks of up to `room` tokens.
struct Buffers<D: Ops> {
    room: usize,
    x: D::Buffer,
    last: D::Buffer,
    logits: D::Buffer,
    step: Step<D>,
    block: block::Scratch<D>,
}

impl<D: Ops> Sequence<D> {
    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in the cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of keys, values and states.
    #[must_use]
    pub fn kv_bytes(&self) -> u64 {
        self.memory.iter().map(|memory| memory.bytes()).sum()
    }

    /// A sequence with the same content, which shares the blocks of its cache; states are copied.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            len: self.len,
            buffers: None,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Forgets every token from `len` on; `false` if a sliding window has moved past them, or a recurrent layer cannot
    /// go back to them: then all is forgotten.
    pub fn truncate(&mut self, len: usize) -> bool {
        if len >= self.len {
            return true;
        }
        let now = self.len;
        let kept = self.memory.iter_mut().all(|memory| memory.truncate(len, now));
        if kept {
            self.len = len;
        } else {
            self.clear();
        }
        kept
    }

    /// Forgets every token.
    fn clear(&mut self) {
        for memory in &mut self.memory {
            memory.truncate(0, self.len);
        }
        self.len = 0;
    }

    /// Goes back to `len` tokens after a chunk broke off, which may have moved some recurrent layers on: then nothing
    /// is left.
    fn roll_back(&mut self, len: usize) {
        if self.memory.iter().any(|memory| memory.is_recurrent()) {
            self.clear();
        } else {
            self.truncate(len);
        }
    }
}

impl<D: Ops> Graph<D> {
    /// The graph of the model that `architecture` describes, its weights taken from `checkpoint`.
    ///
    /// # Errors
    ///
    /// If a tensor is missing, left over, or has another shape.
    pub fn load(
        device: D,
        architecture: Architecture,
        checkpoint: &Checkpoint,
        format: Format,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        check_mixers(&device, &architecture)?;
        let (rotations, kinds) = rotations(&architecture);
        let mut l = Loader::new(&device, checkpoint, &architecture, format, progress)?;
        let weights = Weights::load(&mut l, &kinds)?;
        l.finish()?;
        let Weights { embed, embed_norm, learned_positions, blocks, final_norm, head } = weights;
        Ok(Self {
            device,
            architecture,
            embed,
            embed_norm,
            learned_positions,
            rotations,
            blocks,
            final_norm,
            head,
        })
    }

    /// The device that computes.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The model's description.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// An empty sequence whose cache has elements of `format`.
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn sequence(&self, format: KvFormat) -> Result<Sequence<D>> {
        let memory = |block: &Block<D>| block.memory(&self.device, format);
        let memory = self.blocks.iter().map(memory).collect::<Result<_>>()?;
        Ok(Sequence { memory, len: 0, buffers: None, cos: Vec::new(), sin: Vec::new() })
    }

    /// Passes `ids` through the graph after what is in `sequence`, and appends the wanted rows to `logits`. `go_on` is
    /// asked before every token, and in a prompt before every block.
    ///
    /// # Errors
    ///
    /// If an id is outside the vocabulary, the device fails, or `go_on` says no; the sequence is then as before, or
    /// empty if a recurrent layer has moved on.
    pub fn forward(
        &self,
        ids: &[u32],
        sequence: &mut Sequence<D>,
        rows: Rows,
        logits: &mut Logits,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        self.check_ids(ids)?;
        let before = sequence.len;
        let context = before + ids.len();
        self.check_positions(context)?;
        let n_chunks = ids.len().div_ceil(D::CHUNK);
        for (i, chunk) in ids.chunks(D::CHUNK).enumerate() {
            let rows = match rows {
                Rows::Last | Rows::Largest(_) if i + 1 < n_chunks => Rows::None,
                Rows::None | Rows::Last | Rows::Largest(_) | Rows::All => rows,
            };
            let operations = || self.chunk(chunk, context, sequence, rows, logits, go_on);
            if let Err(e) = self.device.step(chunk.len(), operations) {
                sequence.roll_back(before);
                return Err(e);
            }
        }
        Ok(())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.architecture.vocab;
        match ids.iter().find(|id| **id as usize >= vocab) {
            Some(id) => Err(Error::bad_input(format!(
                "token id {id} is not below the vocabulary's size {vocab}"
            ))),
            None => Ok(()),
        }
    }

    fn check_positions(&self, context: usize) -> Result<()> {
        match self.architecture.embedding.learned_positions {
            Some(rows) if context > rows => Err(Error::new(
                ErrorKind::TooLong,
                format!(
                    "the text has {context} tokens, but the model has learned {rows} positions"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn chunk(
        &self,
        ids: &[u32],
        context: usize,
        sequence: &mut Sequence<D>,
        rows: Rows,
        logits: &mut Logits,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        ask(go_on)?;
        let (d, n) = (&self.device, ids.len());
        let mut buffers = self.buffers(sequence.buffers.take(), n, rows)?;
        let b = &mut buffers;
        // What comes from the host goes first, so that nothing comes between the launches of a device.
        for memory in &mut sequence.memory {
            memory.reserve(sequence.len, sequence.len + n)?;
        }
        self.place(b, n, context, sequence)?;
        self.embed.lookup(d, ids, &mut b.x)?;
        if let Some(table) = &self.learned_positions {
            let positions: Vec<u32> = (sequence.len as u32..).take(n).collect();
            d.embed(table, &positions, &mut b.last)?;
            d.add(&b.last, &mut b.x, n * self.architecture.hidden)?;
        }
        if let Some(norm) = &self.embed_norm {
            d.norm_in_place(norm, &mut b.x, n)?;
        }
        for (block, memory) in self.blocks.iter().zip(&mut sequence.memory) {
            // A single token is done at once, and recurrent layers could not go back from the midst of it.
            if n > 1 {
                ask(go_on)?;
            }
            block.forward(d, &b.step, &mut b.x, memory, &mut b.block)?;
        }
        b.block.settle(d, &mut b.x, n)?;
        self.logits(b, n, rows, logits)?;
        sequence.len += n;
        for memory in &mut sequence.memory {
            memory.forget_unseen(sequence.len);
        }
        sequence.buffers = Some(buffers);
        Ok(())
    }

    /// Buffers with room for `n` tokens: the old ones if they are large enough.
    fn buffers(&self, old: Option<Buffers<D>>, n: usize, rows: Rows) -> Result<Buffers<D>> {
        let (d, hidden, vocab) = (&self.device, self.architecture.hidden, self.architecture.vocab);
        let logit_rows = if rows == Rows::All { n.min(LOGIT_ROWS) } else { 1 };
        let mut buffers = match old {
            Some(buffers) if buffers.room >= n => buffers,
            _ => Buffers {
                room: n,
                x: d.buffer(n * hidden)?,
                last: d.buffer(n * hidden)?,
                logits: d.buffer(logit_rows * vocab)?,
                step: Step { n, start: 0, angles: self.angles(n)? },
                block: block::Scratch::new(d, n, &self.architecture)?,
            },
        };
        if d.room(&buffers.logits) < logit_rows * vocab {
            buffers.logits = d.buffer(logit_rows * vocab)?;
        }
        Ok(buffers)
    }

    fn angles(&self, n: usize) -> Result<Vec<Angles<D>>> {
        let angles = |frequencies: &Frequencies| {
            let rope = frequencies.rope();
            let buffer = || self.device.buffer(n * rope.rotary_dim / 2);
            Ok(Angles {
                cos: buffer()?,
                sin: buffer()?,
                rotary_dim: rope.rotary_dim,
                style: rope.style,
            })
        };
        self.rotations.iter().map(angles).collect()
    }

    /// Tells the step where it stands, and computes the angles of its positions.
    fn place(
        &self,
        b: &mut Buffers<D>,
        n: usize,
        context: usize,
        s: &mut Sequence<D>,
    ) -> Result<()> {
        (b.step.n, b.step.start) = (n, s.len);
        for (frequencies, angles) in self.rotations.iter().zip(&mut b.step.angles) {
            s.cos.clear();
            s.sin.clear();
            frequencies.angles(s.len, n, context, &mut s.cos, &mut s.sin);
            self.device.write(&s.cos, &mut angles.cos)?;
            self.device.write(&s.sin, &mut angles.sin)?;
        }
        Ok(())
    }

    /// Norm and head of the wanted rows of `x`.
    fn logits(&self, b: &mut Buffers<D>, n: usize, rows: Rows, logits: &mut Logits) -> Result<()> {
        let (d, hidden, vocab) = (&self.device, self.architecture.hidden, self.architecture.vocab);
        let first = match rows {
            Rows::None => return Ok(()),
            Rows::Last | Rows::Largest(_) => n - 1,
            Rows::All => 0,
        };
        for from in (first..n).step_by(LOGIT_ROWS) {
            let some: [usize; LOGIT_ROWS] = std::array::from_fn(|i| from + i);
            let some = &some[..LOGIT_ROWS.min(n - from)];
            if some.len() == n {
                d.norm(&self.final_norm, &b.x, n, &mut b.last)?;
            } else {
                d.gather(&b.x, hidden, some, &mut b.last)?;
                d.norm_in_place(&self.final_norm, &mut b.last, some.len())?;
            }
            let head = self.head.as_ref().unwrap_or(&self.embed);
            head.forward(d, &b.last, some.len(), &mut b.logits)?;
            if let Rows::Largest(k) = rows
                && self.largest(&b.logits, k, logits)?
            {
                return Ok(());
            }
            d.read(&b.logits, some.len() * vocab, &mut logits.values)?;
        }
        Ok(())
    }

    /// The `k` largest of a row, by id; `false` where the whole row must tell: if the device does not find them, if one
    /// more is as large, or if one is not a number.
    fn largest(&self, row: &D::Buffer, k: usize, logits: &mut Logits) -> Result<bool> {
        let Some(mut found) = self.device.largest(row, self.architecture.vocab, k + 1)? else {
            return Ok(false);
        };
        let is_clear = found[k - 1].1 > found[k].1;
        found.truncate(k);
        if !is_clear || found.iter().any(|(_, value)| !value.is_finite()) {
            return Ok(false);
        }
        found.sort_unstable_by_key(|(id, _)| *id);
        logits.ids.extend(found.iter().map(|(id, _)| *id));
        logits.values.extend(found.iter().map(|(_, value)| *value));
        Ok(true)
    }
}

/// Stops the computation where `go_on` says no.
fn ask(go_on: &dyn Fn() -> bool) -> Result<()> {
    match go_on() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Cancelled, "the computation was cancelled")),
    }
}

/// Refuses a model with a mixer that the device cannot compute.
///
/// # Errors
///
/// If there is one; it is named.
pub(crate) fn check_mixers<D: Ops>(device: &D, architecture: &Architecture) -> Result<()> {
    let mixers = architecture.layers.iter().filter_map(|layer| layer.mixer.as_ref());
    match mixers.into_iter().find(|mixer| !device.runs(mixer)) {
        None => Ok(()),
        Some(mixer) => Err(Error::not_supported(format!(
            "{} needs {}, which this device cannot compute yet",
            architecture.family,
            match mixer {
                Mixer::Attention(_) => "attention",
                Mixer::Latent(_) => "latent attention",
                Mixer::Mamba(_) => "recurrent layers (Mamba-2)",
            }
        ))
        .hint("--device cpu")),
    }
}

/// The different rotations of a model, and for each layer the number of its own.
fn rotations(architecture: &Architecture) -> (Vec<Frequencies>, Vec<Option<usize>>) {
    let mut kinds: Vec<Frequencies> = Vec::new();
    let mut kind_of = |layer: &tramontane_models::spec::Layer| {
        let rope = layer.rope()?;
        let known = kinds.iter().position(|f| f.rope() == rope);
        Some(known.unwrap_or_else(|| {
            kinds.push(Frequencies::new(rope));
            kinds.len() - 1
        }))
    };
    let of_layers = architecture.layers.iter().map(&mut kind_of).collect();
    (kinds, of_layers)
}

impl<D: Ops> Graph<D> {
    /// Whether what a token computes depends on the length of the whole context (dynamic scaling).
    #[must_use]
    pub fn depends_on_context(&self) -> bool {
        self.rotations.iter().any(|f| matches!(f.rope().scaling, RopeScaling::Dynamic { .. }))
    }
}
