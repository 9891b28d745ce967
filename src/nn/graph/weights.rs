//! What a graph takes from the checkpoint, in the order in which tokens meet it.
//!
//! The same walk serves three readers: it loads a model, rehearses the load by headers alone, and shows each weight to
//! a witness that packs or checks it.

use tramontane_models::names::Part;
use tramontane_models::spec::Architecture;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::nn::block::Block;
use crate::nn::linear::Linear;
use crate::nn::weight::{At, Loader, Witness};
use crate::ops::{Cpu, Format, NormWeight, Ops};

/// What a graph takes from the checkpoint.
pub(super) struct Weights<D: Ops> {
    pub(super) embed: Linear<D>,
    pub(super) embed_norm: Option<NormWeight<D::Buffer>>,
    pub(super) learned_positions: Option<D::Weight>,
    pub(super) blocks: Vec<Block<D>>,
    pub(super) final_norm: NormWeight<D::Buffer>,
    pub(super) head: Option<Linear<D>>,
}

impl<D: Ops> Weights<D> {
    /// Takes everything; `kinds` is the number of each layer's rotation.
    ///
    /// # Errors
    ///
    /// If a tensor is missing, or has another shape or an unknown dtype.
    pub(super) fn load(l: &mut Loader<'_, D>, kinds: &[Option<usize>]) -> Result<Self> {
        let architecture = l.architecture();
        let (vocab, hidden, top) = (architecture.vocab, architecture.hidden, At::default());
        let embed = if architecture.head.tied {
            Linear::load(l, Part::Embed, top, [vocab, hidden], false)?
        } else {
            Linear::table(l, Part::Embed, top, [vocab, hidden])?
        };
        let norm = architecture.embedding.norm.as_ref();
        let embed_norm = l.maybe_norm(Part::EmbedNorm, top, norm, hidden)?;
        let rows = architecture.embedding.learned_positions;
        let learned_positions =
            rows.map(|rows| l.table(Part::LearnedPositions, top, [rows, hidden])).transpose()?;
        let layers = architecture.layers.iter().zip(kinds).enumerate();
        let blocks = layers
            .map(|(i, (spec, kind))| Block::load(l, i, spec, *kind))
            .collect::<Result<_>>()?;
        let final_norm = l.norm(Part::FinalNorm, top, &architecture.final_norm, hidden)?;
        let head = if architecture.head.tied {
            l.skip(Part::Head);
            None
        } else {
            Some(Linear::load(l, Part::Head, top, [vocab, hidden], architecture.head.bias)?)
        };
        Ok(Self { embed, embed_norm, learned_positions, blocks, final_norm, head })
    }
}

/// Checks that `checkpoint` holds exactly the tensors that `architecture` asks for, in shapes and types that can be
/// used, before anything is sized by the configuration.
///
/// # Errors
///
/// If a tensor is missing, left over, or has another shape or an unknown dtype.
pub fn rehearse(architecture: &Architecture, checkpoint: &Checkpoint) -> Result<()> {
    let device = Cpu::new(Some(1))?;
    let mut silent = |_, _| {};
    let mut l = Loader::new(&device, checkpoint, architecture, Format::Auto, &mut silent)?;
    l.rehearse();
    Weights::load(&mut l, &vec![None; architecture.layers.len()])?;
    l.finish()
}

/// Takes every weight to the device, shows it to `witness`, and lets it go.
///
/// # Errors
///
/// If a tensor is missing, left over, or has another shape, or the witness fails.
pub fn show_weights<D: Ops>(
    device: &D,
    architecture: &Architecture,
    checkpoint: &Checkpoint,
    format: Format,
    witness: &mut dyn Witness<D>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let mut l = Loader::new(device, checkpoint, architecture, format, progress)?;
    l.show(witness);
    Weights::load(&mut l, &vec![None; architecture.layers.len()])?;
    l.finish()
}
