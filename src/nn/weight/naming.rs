//! How the tensors of this very checkpoint are called, of the names that its family uses.

use tramontane_models::names::{Names, Part, Prefix};
use tramontane_models::spec::Architecture;

use super::At;
use super::packed::has_packed;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// What stands before the names of the text model in this checkpoint.
pub(super) fn prefix(architecture: &Architecture, checkpoint: &Checkpoint) -> Result<Prefix> {
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

/// The name of a tensor of `part` in the checkpoint, or the one it should have; `None` if the family has no such part.
pub(super) fn stored_name(
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
