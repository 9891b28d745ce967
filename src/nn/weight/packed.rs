//! Matrices that were packed before, and what shows weights to whoever packs them.

use tramontane_models::names::{Part, Prefix};
use tramontane_models::spec::Architecture;

use super::naming::stored_name;
use super::{At, Loader, hollow};
use crate::checkpoint::{Checkpoint, TensorData};
use crate::error::Result;
use crate::ops::{Format, Ops};

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
    /// The name of the matrix of `part` when it is packed, without its format: that of the family, if it has one.
    pub(super) fn packed_name(&self, part: Part, at: At) -> String {
        let names = self.architecture.stored.names;
        let own = names.modules(part, self.prefix, at.layer, at.expert).next();
        own.unwrap_or_else(|| format!("{part:?}.{}.{}", at.layer, at.expert))
    }

    /// The packed matrix of `part`, if the checkpoint has one.
    pub(super) fn packed(&self, part: Part, at: At) -> Option<(&'a TensorData, Format)> {
        let name = self.packed_name(part, at);
        Format::ALL.iter().find_map(|format| {
            let tensor = self.checkpoint.get(&format!("{name}.{}", format.packed_suffix()))?;
            Some((tensor, *format))
        })
    }

    /// A packed matrix.
    pub(super) fn take_packed(
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
        if self.rehearsal {
            self.device.check_packed(tensor, format, shape)?;
            return self.device.weight(&hollow(tensor), Format::Auto);
        }
        self.device.packed_weight(tensor, format, shape)
    }
}

/// Whether the checkpoint has the matrix of `part` packed.
pub(super) fn has_packed(
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
