//! The checks themselves.

use safetensors::Dtype;

use super::Found;
use crate::chat::{ChatRequest, Message};
use crate::checkpoint::{Checkpoint, TensorData};
use crate::error::{Error, ErrorKind, Result};
use crate::eval::{self, Windows};
use crate::files::ModelFiles;
use crate::model::{Model, Plan};
use crate::tokenizer::Tokenizer;

/// French prose that the numbers are tried on.
const PROSE: &str = "Il était une fois, dans une vieille maison au bord de la mer, une petite fille qui aimait \
    regarder les bateaux. Chaque matin, quand le vent se levait, elle courait jusqu'à la plage et comptait les voiles \
    blanches à l'horizon. Son grand-père, qui avait été marin pendant quarante ans, lui racontait les pays lointains, \
    les tempêtes et les longues nuits sous les étoiles. « Un jour, disait-elle, je partirai moi aussi. » Le vieil homme \
    souriait, et ne répondait rien.";

/// Texts that a tokenizer must give back as they are.
const TEXTS: &[&str] = &[
    "Il était une fois",
    "L'été, j'achète 2026 pommes à 3,50 € : c'est trop !",
    "« Où êtes-vous ? » demanda-t-elle ; personne ne répondit.",
    "Noël, cœur, ÉCOLE, aiguë, hélas - façon d'où ça vient",
    "Première ligne\nDeuxième ligne",
    "def pH(x): return [x for y in z]",
];

/// Tokens of [`PROSE`] that perplexity counts at most.
const N_TOKENS: usize = 128;
/// Ids that the model is tried on where it has no tokenizer.
const N_IDS: usize = 32;

/// Is told how many bytes of how many a check has read.
type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The files against the hashes that the cache knows.
#[cfg(feature = "hub")]
pub(super) fn files(files: &ModelFiles, progress: Progress<'_>) -> Result<Found> {
    let ModelFiles::Folder { path, .. } = files else {
        return Ok(Found::Nothing("the model is built in".to_owned()));
    };
    let checked = crate::hub::check_files(path, progress)?;
    if let Some(wrong) = checked.iter().find(|file| file.right == Some(false)) {
        let what =
            format!("the content of {} does not have the hash it is stored under", wrong.name);
        return Err(Error::bad_model(what)
            .at(path.join(&wrong.name).display())
            .hint("tramontane pull --force, which fetches it again"));
    }
    let n = checked.iter().filter(|file| file.right.is_some()).count();
    let bytes: u64 = checked.iter().map(|file| file.size).sum();
    Ok(match n {
        0 => Found::Nothing(format!("{} files, no hashes are known", checked.len())),
        n => {
            Found::Right(format!("{n} of {} files have their hashes, {bytes} bytes", checked.len()))
        }
    })
}

/// Without the hub there is no cache and no hash.
#[cfg(not(feature = "hub"))]
pub(super) fn files(_files: &ModelFiles, _progress: Progress<'_>) -> Result<Found> {
    Ok(Found::Nothing("this program was built without the hub: no hashes are known".to_owned()))
}

/// The headers of the weight files, and every value in them.
pub(super) fn weights(files: &ModelFiles, progress: Progress<'_>) -> Result<Found> {
    let checkpoint = Checkpoint::open(files)?;
    let (n, bytes) = (checkpoint.tensors().len(), checkpoint.total_bytes());
    let mut done = 0;
    for tensor in checkpoint.tensors() {
        check_values(tensor)?;
        checkpoint.release(tensor);
        done += tensor.bytes.len() as u64;
        progress(done, bytes);
    }
    Ok(Found::Right(format!("{n} tensors, {bytes} bytes, all values finite")))
}

/// Refuses a tensor that holds something that is not a finite number.
fn check_values(tensor: &TensorData) -> Result<()> {
    let bytes = &*tensor.bytes;
    // The exponent's bits are all set in infinities and NaN, and in no other number.
    let all_set_16 = |mask: u16| {
        bytes.as_chunks().0.iter().position(move |b| u16::from_le_bytes(*b) & mask == mask)
    };
    let bad = if tensor.dtype == Dtype::F32 {
        let mask = 0x7f80_0000;
        bytes.as_chunks().0.iter().position(|b| u32::from_le_bytes(*b) & mask == mask)
    } else if tensor.dtype == Dtype::BF16 {
        all_set_16(0x7f80)
    } else if tensor.dtype == Dtype::F16 {
        all_set_16(0x7c00)
    } else if tensor.dtype == Dtype::F8_E4M3 {
        // Of 8-bit floats of this kind only all ones is no number.
        bytes.iter().position(|b| b & 0x7f == 0x7f)
    } else {
        // No other type holds numbers that would be used.
        None
    };
    match bad {
        None => Ok(()),
        Some(i) => Err(tensor.error(format!(
            "`{}` holds NaN or an infinity at {i}, expected finite numbers",
            tensor.name
        ))),
    }
}

/// The configuration against the tensors: that is done where the plan is made.
pub(super) fn config(plan: &Plan) -> Found {
    let a = &plan.architecture;
    let mut detail =
        format!("{}, {} layers, {} parameters", a.family, a.layers.len(), a.n_parameters());
    if let Some(warning) = plan.warnings.first() {
        detail += &format!("; {} warnings: {warning}", plan.warnings.len());
    }
    Found::Right(detail)
}

/// The tokenizer against itself and against the embedding.
pub(super) fn tokenizer(plan: &Plan) -> Result<Found> {
    let Some(tokenizer) = &plan.tokenizer else {
        return Ok(Found::Nothing("the model has none".to_owned()));
    };
    for text in TEXTS {
        round_trip(tokenizer, text, plan.architecture.vocab)?;
    }
    let n = control_tokens(tokenizer)?;
    Ok(Found::Right(format!(
        "{} French texts come back, {n} control tokens, {} ids for {} rows",
        TEXTS.len(),
        tokenizer.vocab_size(),
        plan.architecture.vocab
    )))
}

fn round_trip(tokenizer: &Tokenizer, text: &str, vocab: usize) -> Result<()> {
    let ids = tokenizer.encode(text)?;
    check_ids(&ids, vocab)?;
    let mut stream = tokenizer.stream();
    let mut streamed = String::new();
    for id in &ids {
        streamed += &stream.push(*id)?;
    }
    streamed += &stream.finish()?;
    let decoded = tokenizer.decode(&ids)?;
    for (found, how) in [(decoded, "decoded"), (streamed, "decoded id by id")] {
        if found != text {
            return Err(Error::bad_model(format!(
                "the tokenizer gives {found:?} for the ids of {text:?}, {how}: expected the same text"
            )));
        }
    }
    Ok(())
}

/// Each control token must be one id where a template writes it, and never come from what people write.
fn control_tokens(tokenizer: &Tokenizer) -> Result<usize> {
    let ids = tokenizer.control_ids();
    for id in ids {
        let Some(name) = tokenizer.piece(*id) else { continue };
        let written = tokenizer.encode_special(&name)?;
        if !written.contains(id) {
            return Err(Error::bad_model(format!(
                "the control token `{name}` becomes {written:?} in a template, expected [{id}]"
            )));
        }
        if let Some(control) = tokenizer.encode(&name)?.iter().find(|other| ids.contains(other)) {
            return Err(Error::bad_model(format!(
                "the text `{name}` becomes the control token {control}, expected ordinary text"
            )));
        }
    }
    Ok(ids.len())
}

fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::bad_model(format!(
            "the tokenizer gives id {id}, but the embedding has {vocab} rows"
        ))),
    }
}

/// The chat template on a short conversation.
pub(super) fn template(plan: &Plan) -> Result<Found> {
    let Some(chat) = &plan.chat else {
        return Ok(Found::Nothing("the model has none: it completes texts".to_owned()));
    };
    let messages =
        vec![Message::user("Bonjour"), Message::assistant("Bonjour !"), Message::user("Ça va ?")];
    let request = ChatRequest::new(messages);
    let text = chat.render(&request)?;
    for said in ["Bonjour", "Ça va ?"] {
        if !text.contains(said) {
            return Err(Error::new(
                ErrorKind::Template,
                format!("the chat template drops the message `{said}`"),
            )
            .at(chat.source()));
        }
    }
    let Some(tokenizer) = &plan.tokenizer else {
        return Ok(Found::Right(format!("{}: {} characters", chat.source(), text.chars().count())));
    };
    let ids = chat.encode(&request, tokenizer)?;
    check_ids(&ids, plan.architecture.vocab)?;
    Ok(Found::Right(format!("{}: 3 messages become {} ids", chat.source(), ids.len())))
}

/// The logits of a French text, or of some ids where there is no tokenizer.
pub(super) fn logits(model: &Model) -> Result<Found> {
    let vocab = model.architecture().vocab;
    let mut ids = match model.tokenizer() {
        Some(tokenizer) => tokenizer.encode_prompt(PROSE)?,
        None => (0..N_IDS).map(|i| (i * 7919 % vocab) as u32).collect(),
    };
    ids.truncate(N_TOKENS.min(model.info().context));
    let logits = model.forward(&ids, &mut model.cache()?)?.flatten_all()?.to_vec1::<f32>()?;
    if let Some(i) = logits.iter().position(|x| !x.is_finite()) {
        return Err(Error::new(
            ErrorKind::Numerics,
            format!("the logit of token {} at position {} is {}", i % vocab, i / vocab, logits[i]),
        )
        .so("the weights are damaged, or overflow in this number format")
        .hint("--format f32, or pulling the model again"));
    }
    let (low, high) = logits.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
    Ok(Found::Right(format!("{} tokens, all finite, from {low:.2} to {high:.2}", ids.len())))
}

/// How well the model expects French prose: worse than guessing means that its weights are not what they should be.
pub(super) fn perplexity(model: &Model) -> Result<Found> {
    if model.tokenizer().is_none() {
        return Ok(Found::Nothing("the model has no tokenizer".to_owned()));
    }
    let context = N_TOKENS.min(model.info().context);
    let windows = Windows { context, stride: context, limit: Some(N_TOKENS) };
    let p = eval::perplexity(model, PROSE, windows, &mut |_, _| ())?;
    let vocab = model.architecture().vocab;
    if !p.perplexity.is_finite() || p.perplexity > vocab as f64 {
        return Err(Error::bad_model(format!(
            "the perplexity on French prose is {:.0}, worse than guessing among {vocab} tokens",
            p.perplexity
        ))
        .so("the weights are not what the configuration says, or were never trained"));
    }
    Ok(Found::Right(format!(
        "{:.2} over {} tokens of French prose, {:.3} bits per character",
        p.perplexity, p.tokens, p.bits_per_char
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_bad(dtype: Dtype, bytes: Vec<u8>) -> bool {
        let tensor = TensorData {
            name: "t".to_owned(),
            dtype,
            shape: vec![2],
            bytes: bytes.into(),
            file: "f".into(),
        };
        check_values(&tensor).is_err()
    }

    #[test]
    fn what_is_no_finite_number_is_found_in_every_type() {
        use half::{bf16, f16};
        for (x, bad) in [(1.0f32, false), (-0.0, false), (f32::NAN, true), (f32::INFINITY, true)] {
            let two = [0.5, x];
            let wide = two.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(first_bad(Dtype::F32, wide), bad, "{x}");
            let brain = two.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
            assert_eq!(first_bad(Dtype::BF16, brain), bad, "{x}");
            let half = two.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
            assert_eq!(first_bad(Dtype::F16, half), bad, "{x}");
        }
        assert!(
            first_bad(Dtype::F8_E4M3, vec![0, 0xff]) && !first_bad(Dtype::F8_E4M3, vec![0, 0x7e])
        );
    }
}
