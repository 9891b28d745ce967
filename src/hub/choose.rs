//! Which files of a repository a model needs.
//!
//! Only names of a few known shapes are ever chosen, so a hostile list cannot make anything else appear on the
//! disk. A repository may hold its weights several times, under Hugging Face names, under Mistral's own, as
//! pickles and as GGUF: one copy in safetensors is fetched, the one that the loader would take.

use crate::error::{Error, ErrorKind, Result};

/// The most shards that the weights of one model may have.
const MAX_SHARDS: usize = 10_000;

/// One copy of the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    /// The index that names the shards.
    Index(String),
    /// The files themselves.
    Files(Vec<String>),
}

/// Files that are fetched if they are there.
const WANTED: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "params.json",
    // The last one: a folder without it is no model yet, so it completes the snapshot.
    "config.json",
];

/// The configuration, tokenizer and template files among `names`; `config.json` is the last of them.
pub(super) fn small_files<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let rank = |name: &str| WANTED.iter().position(|wanted| *wanted == name);
    let mut chosen: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| rank(name).is_some() || is_template(name) || is_versioned_tokenizer(name))
        .collect();
    // Unranked names sort first.
    chosen.sort_by_key(|name| rank(name));
    chosen
}

/// `additional_chat_templates/NAME.jinja`, one level deep.
fn is_template(name: &str) -> bool {
    let stem = name
        .strip_prefix("additional_chat_templates/")
        .and_then(|name| name.strip_suffix(".jinja"));
    stem.is_some_and(is_plain)
}

/// `NAME.model.v3`: the SentencePiece tokenizers of Mistral's own format.
fn is_versioned_tokenizer(name: &str) -> bool {
    name.rsplit_once(".model.v").is_some_and(|(stem, version)| {
        is_plain(stem) && is_plain(version) && version.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// Letters, digits, `_`, `-` and inner dots: nothing that any system reads as something else.
fn is_plain(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Whether there is a tokenizer among `names`.
pub(super) fn has_tokenizer(names: &[&str]) -> bool {
    names.iter().any(|name| {
        matches!(*name, "tokenizer.json" | "tekken.json" | "tokenizer.model")
            || is_versioned_tokenizer(name)
    })
}

/// The copy of the weights that is loaded, in the loader's order of preference.
///
/// # Errors
///
/// If there are no safetensors, or it cannot be told which of them are the model.
pub(super) fn weights(names: &[&str]) -> Result<Weights> {
    let has = |name: &str| names.contains(&name);
    let native_first = has("params.json") && !has("config.json");
    let stems = if native_first { ["consolidated", "model"] } else { ["model", "consolidated"] };
    for stem in stems {
        let (index, single) =
            (format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors"));
        if has(&index) {
            return Ok(Weights::Index(index));
        }
        if has(&single) {
            return Ok(Weights::Files(vec![single]));
        }
        if let Some(shards) = numbered(names, stem)? {
            return Ok(Weights::Files(shards));
        }
    }
    match &ending(names, &[".safetensors"])[..] {
        [] => Err(no_safetensors(names)),
        _ if has("adapter_config.json") => Err(adapter()),
        [name] => Ok(Weights::Files(vec![(*name).to_owned()])),
        several => Err(Error::not_supported(format!(
            "{} weight files, none of them called model.safetensors: {}",
            several.len(),
            several[..several.len().min(5)].join(", ")
        ))
        .so("it is not clear which of them is the model")),
    }
}

/// Root files with one of these endings.
fn ending<'a>(names: &[&'a str], endings: &[&str]) -> Vec<&'a str> {
    let fits = |name: &&str| is_plain(name) && endings.iter().any(|end| name.ends_with(end));
    names.iter().copied().filter(fits).collect()
}

/// All of `stem-0000x-of-0000n.safetensors`, if there is one of them.
fn numbered(names: &[&str], stem: &str) -> Result<Option<Vec<String>>> {
    let count = names.iter().find_map(|name| {
        let (number, count) = name
            .strip_prefix(stem)?
            .strip_prefix('-')?
            .strip_suffix(".safetensors")?
            .split_once("-of-")?;
        (number.len() == 5 && count.len() == 5).then(|| count.parse::<usize>().ok())?
    });
    let Some(count) = count else { return Ok(None) };
    if count > MAX_SHARDS {
        return Err(Error::bad_model(format!("{count} shards, expected at most {MAX_SHARDS}")));
    }
    let shards: Vec<String> =
        (1..=count).map(|n| format!("{stem}-{n:05}-of-{count:05}.safetensors")).collect();
    let missing: Vec<&str> =
        shards.iter().map(String::as_str).filter(|shard| !names.contains(shard)).collect();
    if missing.is_empty() {
        return Ok(Some(shards));
    }
    Err(Error::bad_model(format!(
        "{} of {count} weight files are missing, the first is {}",
        missing.len(),
        missing[0]
    )))
}

fn no_safetensors(names: &[&str]) -> Error {
    let so = "only safetensors are loaded";
    if names.contains(&"adapter_config.json") {
        return adapter();
    }
    if let Some(name) = ending(names, &[".bin", ".pt", ".pth", ".pkl", ".ckpt"]).first() {
        return Error::not_supported(format!("the weights are only there as a pickle ({name})"))
            .so(format!("a pickle can run any program when it is read; {so}"))
            .hint("a copy of the model in safetensors");
    }
    if let Some(name) = ending(names, &[".gguf"]).first() {
        return Error::not_supported(format!("the weights are only there as GGUF ({name})"))
            .so(so)
            .hint("the original model in safetensors");
    }
    Error::new(ErrorKind::NotFound, "no weights: expected model.safetensors or its shards")
}

fn adapter() -> Error {
    Error::not_supported("a LoRA adapter (adapter_config.json), not a whole model")
        .hint("the base model, or a merged copy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files_are_those_that_something_reads() {
        let names = [
            "config.json",
            "README.md",
            "tokenizer.json",
            "tokenizer.model.v3",
            "x/config.json",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/../x.jinja",
            "additional_chat_templates/a/b.jinja",
            "pytorch_model.bin",
            "CON",
            "onnx/model.onnx",
            ".model.v3",
            "a/b.model.v3",
        ];
        assert_eq!(
            small_files(&names),
            [
                "tokenizer.model.v3",
                "additional_chat_templates/tool_use.jinja",
                "tokenizer.json",
                "config.json"
            ]
        );
    }

    #[test]
    fn one_copy_of_the_weights_is_chosen() {
        let files =
            |names: &[&str]| Weights::Files(names.iter().map(|n| (*n).to_owned()).collect());
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let index = "model.safetensors.index.json";
        for (names, expected) in [
            (
                &["config.json", "consolidated.safetensors", shards[0], shards[1], index][..],
                Weights::Index(index.into()),
            ),
            (
                &["config.json", "consolidated.safetensors", "model.safetensors", "params.json"],
                files(&["model.safetensors"]),
            ),
            (&["params.json", "consolidated.safetensors"], files(&["consolidated.safetensors"])),
            (
                &["params.json", "consolidated.safetensors", "model.safetensors"],
                files(&["consolidated.safetensors"]),
            ),
            (&[shards[1], shards[0], "pytorch_model.bin"], files(&shards)),
            (&["weights.safetensors", "x/other.safetensors"], files(&["weights.safetensors"])),
        ] {
            assert_eq!(weights(names).unwrap(), expected, "{names:?}");
        }
    }

    #[test]
    fn weights_that_cannot_be_loaded_are_refused_with_their_reason() {
        for (names, word) in [
            (&["config.json"][..], "no weights"),
            (&["config.json", "pytorch_model.bin"], "pickle"),
            (&["model-q4.gguf"], "GGUF"),
            (&["adapter_config.json", "adapter_model.safetensors"], "LoRA"),
            (&["a.safetensors", "b.safetensors"], "not clear"),
            (&["model-00001-of-00002.safetensors"], "1 of 2 weight files are missing"),
            (&["model-00001-of-99999.safetensors"], "at most 10000"),
            (&["x/model.safetensors"], "no weights"),
        ] {
            let error = weights(names).unwrap_err().to_string();
            assert!(error.contains(word), "{names:?}: {error}");
        }
    }
}
