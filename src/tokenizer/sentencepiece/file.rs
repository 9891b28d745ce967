//! The content of a SentencePiece model file, read and checked.
//!
//! Field numbers are those of `sentencepiece_model.proto`; what only matters for training is skipped.

use super::super::charsmap::Charsmap;
use super::super::protobuf::Fields;
use super::super::vocab::MAX_ID;
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelType {
    Unigram,
    Bpe,
}

/// A piece as the file has it.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
    pub(super) kind: PieceType,
}

/// What the file says, read and checked but not yet indexed.
pub(super) struct File<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    pub(super) trainer: Trainer,
    pub(super) normalizer: Normalizer,
}

/// The fields of `trainer_spec` that matter after the training.
pub(super) struct Trainer {
    pub(super) model: ModelType,
    pub(super) byte_fallback: bool,
    pub(super) bos: i64,
    pub(super) eos: i64,
}

/// How text is prepared (`normalizer_spec`).
#[derive(Debug)]
pub(super) struct Normalizer {
    pub(super) charsmap: Option<Charsmap>,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) escape_whitespaces: bool,
}

/// The byte that `<0xXX>` names.
pub(super) fn byte_value(piece: &str) -> Result<u8> {
    piece
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .filter(|hex| hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
        .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        .ok_or_else(|| {
            Error::bad_model(format!("the byte piece `{piece}` is not of the form `<0x0A>`"))
        })
}

impl PieceType {
    pub(super) fn is_special(self) -> bool {
        match self {
            Self::Control | Self::Unknown => true,
            Self::Normal | Self::UserDefined | Self::Byte => false,
        }
    }

    pub(super) fn of(number: u64) -> Result<Self> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            5 => return Err(Error::not_supported("a piece is marked as unused")),
            n => {
                return Err(Error::bad_model(format!("a piece has the type {n}, expected 1 to 6")));
            }
        })
    }
}

impl<'a> File<'a> {
    pub(super) fn read(model: &'a [u8]) -> Result<Self> {
        let mut pieces = Vec::new();
        let (mut trainer, mut normalizer) = (&[][..], &[][..]);
        for field in Fields::of(model) {
            match field? {
                (1, value) => pieces.push(read_piece(value.bytes("pieces")?)?),
                (2, value) => trainer = value.bytes("trainer_spec")?,
                (3, value) => normalizer = value.bytes("normalizer_spec")?,
                (5, value) => refuse_denormalizer(value.bytes("denormalizer_spec")?)?,
                _ => {}
            }
        }
        if pieces.is_empty() || pieces.len() > MAX_ID as usize {
            return Err(Error::bad_model(format!(
                "the model has {} pieces, expected 1 to {MAX_ID}",
                pieces.len()
            )));
        }
        Ok(Self {
            pieces,
            trainer: Trainer::read(trainer)?,
            normalizer: Normalizer::read(normalizer)?,
        })
    }

    /// The id of a control token; negative where there is none.
    pub(super) fn control(&self, field: &str, id: i64) -> Result<Option<u32>> {
        let Ok(at) = usize::try_from(id) else { return Ok(None) };
        if at >= self.pieces.len() {
            return Err(Error::bad_model(format!(
                "`{field}` is {id}, expected less than the {} pieces",
                self.pieces.len()
            )));
        }
        Ok(u32::try_from(at).ok())
    }

    /// The scores of ordinary pieces.
    pub(super) fn scores(&self) -> impl Iterator<Item = f32> + '_ {
        self.pieces.iter().filter(|p| p.kind == PieceType::Normal).map(|p| p.score)
    }

    /// The ids of the 256 bytes, where characters without a piece are spelt out in bytes.
    pub(super) fn bytes(&self) -> Result<Option<Box<[u32; 256]>>> {
        if !self.trainer.byte_fallback {
            return Ok(None);
        }
        let mut ids = Box::new([u32::MAX; 256]);
        for (piece, id) in self.pieces.iter().zip(0..) {
            if piece.kind == PieceType::Byte {
                ids[usize::from(byte_value(piece.text)?)] = id;
            }
        }
        match ids.iter().position(|id| *id == u32::MAX) {
            Some(byte) => Err(Error::bad_model(format!(
                "the piece `<0x{byte:02X}>` is missing, expected all 256 bytes"
            ))),
            None => Ok(Some(ids)),
        }
    }
}

fn read_piece(message: &[u8]) -> Result<Piece<'_>> {
    let mut piece = Piece { text: "", score: 0.0, kind: PieceType::Normal };
    for field in Fields::of(message) {
        match field? {
            (1, value) => piece.text = value.text("piece")?,
            (2, value) => piece.score = value.float("score")?,
            (3, value) => piece.kind = PieceType::of(value.number("type")?)?,
            _ => {}
        }
    }
    if piece.text.is_empty() || !piece.score.is_finite() {
        return Err(Error::bad_model(format!(
            "the piece `{}` with the score {} is empty, or has no finite score",
            piece.text, piece.score
        )));
    }
    Ok(piece)
}

fn refuse_denormalizer(message: &[u8]) -> Result<()> {
    for field in Fields::of(message) {
        if let (2, value) = field?
            && !value.bytes("denormalizer_spec.precompiled_charsmap")?.is_empty()
        {
            return Err(Error::not_supported("the model has a `denormalizer_spec`"));
        }
    }
    Ok(())
}

impl Trainer {
    pub(super) fn read(message: &[u8]) -> Result<Self> {
        let mut trainer = Self { model: ModelType::Unigram, byte_fallback: false, bos: 1, eos: 2 };
        // A negative number is written as the 64-bit complement.
        let signed = |n: u64| n as i64;
        for field in Fields::of(message) {
            match field? {
                (3, value) => {
                    trainer.model = match value.number("trainer_spec.model_type")? {
                        1 => ModelType::Unigram,
                        2 => ModelType::Bpe,
                        n => {
                            return Err(Error::not_supported(format!(
                                "`trainer_spec.model_type` is {n}, expected 1 (unigram) or 2 (BPE)"
                            )));
                        }
                    }
                }
                (24, value) if value.number("treat_whitespace_as_suffix")? != 0 => {
                    return Err(Error::not_supported(
                        "`trainer_spec.treat_whitespace_as_suffix` is true",
                    ));
                }
                (35, value) => {
                    trainer.byte_fallback = value.number("trainer_spec.byte_fallback")? != 0;
                }
                (41, value) => trainer.bos = signed(value.number("trainer_spec.bos_id")?),
                (42, value) => trainer.eos = signed(value.number("trainer_spec.eos_id")?),
                _ => {}
            }
        }
        Ok(trainer)
    }
}

impl Normalizer {
    pub(super) fn read(message: &[u8]) -> Result<Self> {
        let mut normalizer = Self {
            charsmap: None,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Fields::of(message) {
            match field? {
                (2, value) => {
                    let blob = value.bytes("normalizer_spec.precompiled_charsmap")?;
                    if !blob.is_empty() {
                        normalizer.charsmap = Some(Charsmap::read(blob)?);
                    }
                }
                (3, value) => normalizer.add_dummy_prefix = value.number("add_dummy_prefix")? != 0,
                (4, value) => {
                    normalizer.remove_extra_whitespaces =
                        value.number("remove_extra_whitespaces")? != 0;
                }
                (5, value) => {
                    normalizer.escape_whitespaces = value.number("escape_whitespaces")? != 0;
                }
                _ => {}
            }
        }
        Ok(normalizer)
    }
}
