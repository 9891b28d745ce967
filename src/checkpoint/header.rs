//! The header of a safetensors file, checked before anything is believed.
//!
//! The file is: 8 bytes, the little-endian length `n` of the header; `n` bytes of JSON, an object that gives
//! each tensor its dtype, shape and byte range; then the data, which the tensors must cover exactly, without
//! gap, overlap or rest (<https://github.com/huggingface/safetensors>, "Format"). Whoever wrote the file may
//! be an enemy: no number of it sizes an allocation or an index before it was compared with the file's length.

mod json;

use std::ops::Range;

use safetensors::Dtype;

use super::magic;
use crate::error::{Error, Result};

/// The longest header that is read, in bytes: the limit of the format's own library.
pub const MAX_HEADER: u64 = 100_000_000;
/// The longest name of a tensor, in bytes.
pub const MAX_NAME: usize = 1024;
/// The largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;

/// What a header says: its tensors in the order of their bytes, and the notes of whoever wrote the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their bytes in the file.
    pub tensors: Vec<Entry>,
    /// The free text under `__metadata__`: key and value, in the order of the file.
    pub metadata: Vec<(String, String)>,
}

/// One tensor of a [`Header`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tensor's name: at most [`MAX_NAME`] bytes, without control characters.
    pub name: String,
    /// How a value is stored.
    pub dtype: Dtype,
    /// The length of each dimension, the slowest first.
    pub shape: Vec<usize>,
    /// Where the tensor's bytes are, counted from the start of the file.
    pub range: Range<usize>,
}

impl Header {
    /// Reads the header of the safetensors file whose content is `file`.
    ///
    /// The ranges of the result lie inside `file`, cover its data exactly, and fit their dtype and shape.
    ///
    /// ```
    /// use tramontane::checkpoint::header::Header;
    /// let json = br#"{"bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    /// let mut file = (json.len() as u64).to_le_bytes().to_vec();
    /// file.extend_from_slice(json);
    /// file.extend_from_slice(&[0; 8]);
    /// let header = Header::parse(&file)?;
    /// assert_eq!(header.tensors[0].shape, [2]);
    /// assert_eq!(header.tensors[0].range.len(), 8);
    ///
    /// // One byte less, and the file is known to be cut.
    /// assert!(Header::parse(&file[..file.len() - 1]).is_err());
    /// # Ok::<(), tramontane::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the file is not safetensors, or breaks any rule of the format; the message names the rule and the tensor.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let json = header_text(file)?;
        let data_start = 8 + json.len();
        let mut header = json::read(json, data_start)?;
        header.tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
        check_names(&header.tensors)?;
        check_coverage(&header.tensors, data_start, file.len())?;
        Ok(header)
    }
}

/// The JSON text of the header, its length compared with the file's.
fn header_text(file: &[u8]) -> Result<&str> {
    if file.is_empty() {
        return Err(Error::bad_model("the file is empty (0 bytes)").hint("pulling the model again"));
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(foreign(file).unwrap_or_else(|| {
            Error::bad_model(format!(
                "the file has {} bytes, shorter than its 8-byte header length",
                file.len()
            ))
            .hint("pulling the model again")
        }));
    };
    let length = u64::from_le_bytes(*length);
    // A valid header starts with a brace, so the first bytes of other formats cannot be mistaken for a length.
    let plausible = rest.first() == Some(&b'{') && length <= rest.len() as u64;
    if !plausible && let Some(error) = foreign(file) {
        return Err(error);
    }
    if length > MAX_HEADER {
        return Err(Error::bad_model(format!(
            "the header length is {length} bytes, too large: expected at most {MAX_HEADER}"
        ))
        .so("this is not a safetensors file, or its first bytes are damaged"));
    }
    if length > rest.len() as u64 {
        return Err(Error::bad_model(format!(
            "the header of {length} bytes runs past the end of the file, which has {} bytes",
            file.len()
        ))
        .so("the download may be incomplete")
        .hint("pulling the model again: it resumes where it stopped"));
    }
    // `length` is at most `rest.len()`, so it fits a usize.
    let json = &rest[..length as usize];
    std::str::from_utf8(json).map_err(|e| {
        Error::bad_model(format!(
            "the header is not UTF-8 (first bad byte at {})",
            8 + e.valid_up_to()
        ))
    })
}

/// The error for a file of another kind that is known by its first bytes.
fn foreign(file: &[u8]) -> Option<Error> {
    magic::recognise(file).map(|kind| {
        Error::bad_model(format!("this is {}, not a safetensors file", kind.name))
            .so(kind.so)
            .hint(kind.hint)
    })
}

/// Checks that the tensors, sorted by place, cover the data exactly.
fn check_coverage(tensors: &[Entry], data_start: usize, file_len: usize) -> Result<()> {
    let needed = tensors.last().map_or(data_start, |last| last.range.end);
    let mut covered = data_start;
    for (i, tensor) in tensors.iter().enumerate() {
        let (name, Range { start, end }) = (&tensor.name, tensor.range.clone());
        if start < covered {
            let before = &tensors[i - 1].name;
            return Err(Error::bad_model(format!(
                "the tensors `{before}` and `{name}` overlap by {} bytes",
                covered - start
            )));
        }
        if end > file_len {
            let needed = needed.max(end);
            return Err(Error::bad_model(format!(
                "the data ends {} bytes early: `{name}` ends at byte {end}, the last tensor at {needed}, \
                 but the file has {file_len} bytes",
                needed - file_len
            ))
            .so("the file is truncated, or its header is wrong")
            .hint("pulling the model again"));
        }
        if start > covered {
            return Err(Error::bad_model(format!(
                "there is a gap of {} bytes before the tensor `{name}`",
                start - covered
            )));
        }
        covered = end;
    }
    if covered < file_len {
        let rest = file_len - covered;
        let bytes = if rest == 1 { "byte" } else { "bytes" };
        return Err(Error::bad_model(format!("the file has {rest} {bytes} after the last tensor"))
            .so("something else may hide there; nothing was loaded"));
    }
    Ok(())
}

fn check_names(tensors: &[Entry]) -> Result<()> {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::bad_model(format!(
            "the tensor name `{}` stands twice in the header",
            pair[0]
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file with `json` as its header and `data` zero bytes after it.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    /// A header whose tensors are called `a`, `b`, … with the given dtype, shape and offsets.
    fn header(tensors: &[(&str, &str, &str)]) -> String {
        let entry = |((dtype, shape, offsets), name): (&(&str, &str, &str), char)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
        };
        let entries: Vec<String> = tensors.iter().zip('a'..).map(entry).collect();
        format!("{{{}}}", entries.join(","))
    }

    fn two() -> String {
        header(&[("F32", "[2]", "[0,8]"), ("BF16", "[2,2]", "[8,16]")])
    }

    #[track_caller]
    fn refused(file: &[u8], words: &[&str]) {
        let message = Header::parse(file).expect_err("the file must be refused").to_string();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in:\n{message}");
        }
        assert!(message.len() < 2500, "the message has {} bytes", message.len());
    }

    #[test]
    fn a_valid_file_is_read() {
        let found = Header::parse(&file(&two(), 16)).unwrap();
        let start = 8 + two().len();
        assert_eq!(found.tensors[0].range, start..start + 8);
        assert_eq!(found.tensors[1].shape, [2, 2]);
        assert_eq!(found.tensors[1].dtype, Dtype::BF16);
        let with_notes = two().replacen('{', r#"{"__metadata__":{"format":"pt"},"#, 1) + "  ";
        let found = Header::parse(&file(&with_notes, 16)).unwrap();
        assert_eq!(found.metadata, [("format".to_owned(), "pt".to_owned())]);
    }

    #[test]
    fn the_formats_own_library_writes_files_that_are_read() {
        let data = [0_u8; 24];
        let view =
            |dtype, shape, data| safetensors::tensor::TensorView::new(dtype, shape, data).unwrap();
        let tensors = [
            ("x", view(Dtype::F32, vec![2, 3], &data[..])),
            ("odd", view(Dtype::U8, vec![5], &data[..5])),
            ("none", view(Dtype::F32, vec![0, 3], &data[..0])),
            ("scalar", view(Dtype::F16, vec![], &data[..2])),
        ];
        let bytes = safetensors::serialize(tensors, None).unwrap();
        assert_eq!(Header::parse(&bytes).unwrap().tensors.len(), 4);
    }

    #[test]
    fn short_files_and_absurd_lengths_are_refused() {
        refused(b"", &["empty", "0 bytes"]);
        refused(&[1; 7], &["7 bytes", "8-byte header length"]);
        refused(&[0xff; 64], &["header length", "too large"]);
        let mut long = file(&two(), 16);
        let length = long.len() as u64;
        long[..8].copy_from_slice(&length.to_le_bytes());
        refused(&long, &["runs past the end of the file", "incomplete"]);
        refused(&100_000_001_u64.to_le_bytes(), &["100000001", "too large"]);
    }

    #[test]
    fn headers_that_are_not_json_objects_are_refused() {
        let mut binary = file(&two(), 16);
        binary[12] = 0xff;
        refused(&binary, &["not UTF-8", "12"]);
        refused(&file("{", 0), &["not valid JSON", "byte 9"]);
        refused(&file("{\n\"a\":\n?}", 0), &["not valid JSON", "byte 16"]);
        refused(&file("[1,2]", 0), &["expected an object"]);
        refused(&file("\"x\"", 0), &["expected an object"]);
        refused(&file("{}{}", 0), &["not valid JSON", "trailing"]);
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let deep = "[".repeat(100_000);
        refused(&file(&format!(r#"{{"__metadata__":{deep}"#), 0), &["`__metadata__`", "an object"]);
        refused(
            &file(&format!(r#"{{"__metadata__":{{"a":{deep}"#), 0),
            &["`__metadata__`", "string"],
        );
        refused(&file(&format!(r#"{{"a":{{"dtype":{deep}"#), 0), &["`a`", "string"]);
        refused(&file(&format!(r#"{{"a":{{"other":{deep}"#), 0), &["`a`", "unknown key `other`"]);
        refused(&file(&format!(r#"{{"a":{deep}"#), 0), &["`a`", "an object with dtype"]);
    }

    #[test]
    fn the_data_must_be_covered_exactly() {
        refused(&file(&two(), 15), &["1 bytes early", "`b`"]);
        refused(&file(&two(), 4), &["12 bytes early", "`a`"]);
        refused(&file(&two(), 17), &["1 byte after the last tensor"]);
        let mut polyglot = file(&two(), 16);
        polyglot.extend_from_slice(b"PK\x05\x06 and 18 more bytes!");
        refused(&polyglot, &["23 bytes after the last tensor"]);
        let gap = header(&[("F32", "[2]", "[0,8]"), ("F32", "[2]", "[16,24]")]);
        refused(&file(&gap, 24), &["gap of 8 bytes", "`b`"]);
        let overlap = header(&[("F32", "[2]", "[0,8]"), ("F32", "[2]", "[4,12]")]);
        refused(&file(&overlap, 12), &["`a` and `b` overlap by 4 bytes"]);
        let far = header(&[("F32", "[2]", "[0,8]"), ("F32", "[2]", "[4000000000,4000000008]")]);
        refused(&file(&far, 16), &["`b` ends at byte 4000000", "bytes early"]);
    }

    #[test]
    fn offsets_must_fit_shape_and_dtype() {
        let one = |dtype, shape, offsets| file(&header(&[(dtype, shape, offsets)]), 16);
        refused(&one("F32", "[2]", "[8,0]"), &["`a`", "reversed"]);
        refused(&one("F32", "[8589934592,8589934592]", "[0,16]"), &["`a`", "too large"]);
        refused(&one("F32", "[4611686018427387904]", "[0,16]"), &["`a`", "too large"]);
        refused(&one("F32", "[3]", "[0,16]"), &["`a`", "16 bytes", "takes 12"]);
        refused(&one("F4", "[3]", "[0,2]"), &["`a`", "whole bytes"]);
        refused(&one("F32", "[-1]", "[0,16]"), &["`a`", "-1", "unsigned integer"]);
        refused(&one("F32", "[4.0]", "[0,16]"), &["`a`", "4.0", "unsigned integer"]);
        refused(&one("F32", "[18446744073709551616]", "[0,16]"), &["`a`", "unsigned integer"]);
        refused(&one("F32", "[1,1,1,1,1,1,1,1,4]", "[0,16]"), &["`a`", "rank 9"]);
        refused(&one("F32", "4", "[0,16]"), &["`a`", "list of unsigned integers"]);
        refused(&one("F32", "[4]", "[0]"), &["`a`", "1 numbers, expected 2"]);
        refused(&one("F32", "[4]", "[0,16,16]"), &["`a`", "3 numbers, expected 2"]);
        refused(&one("F32", "[4]", "[18446744073709551599,18446744073709551615]"), &["`a`"]);
        refused(&one("F7", "[4]", "[0,16]"), &["`a`", "\"F7\"", "BF16"]);
    }

    #[test]
    fn entries_are_objects_of_three_known_keys() {
        let entry = |entry: &str| file(&format!(r#"{{"a":{entry}}}"#), 4);
        refused(&entry(r#"["F32",[1],[0,4]]"#), &["`a`", "an object with dtype"]);
        refused(&entry(r#"{"dtype":"F32","data_offsets":[0,4]}"#), &["`a`", "`shape` is missing"]);
        let twice = r#"{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}"#;
        refused(&entry(twice), &["`a`", "`dtype` stands twice"]);
        let unknown = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"file":"/etc/passwd"}"#;
        refused(&entry(unknown), &["`a`", "unknown key `file`"]);
    }

    #[test]
    fn names_are_unique_short_and_printable() {
        let twice =
            header(&[("F32", "[1]", "[0,4]"), ("F32", "[1]", "[0,4]")]).replace("\"b\"", "\"a\"");
        refused(&file(&twice, 4), &["tensor name `a` stands twice"]);
        let long = two().replace("\"a\"", &format!("\"{}\"", "n".repeat(1 << 20)));
        refused(&file(&long, 16), &["1048576 bytes", "at most 1024"]);
        for hostile in ["\\u0000", "\\u001b[2J", "\\n", ""] {
            let json = two().replace("\"a\"", &format!("\"{hostile}\""));
            refused(&file(&json, 16), &["control character"]);
            let shown = Header::parse(&file(&json, 16)).unwrap_err().to_string();
            assert!(!shown.contains(['\u{1b}', '\0']), "{shown:?}");
        }
    }

    #[test]
    fn metadata_holds_texts_only() {
        let with = |metadata: &str| file(&format!(r#"{{"__metadata__":{metadata}}}"#), 0);
        refused(&with(r#"{"a":1}"#), &["`__metadata__`", "a string"]);
        refused(&with("[]"), &["`__metadata__`", "values are strings"]);
        refused(&with(r#"{"a":"x","a":"y"}"#), &["`__metadata__`", "`a` stands twice"]);
        let tensor = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        refused(&with(tensor), &["`__metadata__`", "a string"]);
        refused(&file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), &["`__metadata__`", "twice"]);
    }

    #[test]
    fn other_kinds_of_files_are_recognised() {
        let long = |start: &[u8]| [start, &[7; 300]].concat();
        for pickle in [&b"PK\x03\x04"[..], b"\x80\x02}q\0", b"\x80\x04\x95"] {
            refused(&long(pickle), &["pickle", "never loaded"]);
        }
        refused(&long(b"GGUF\x03\0\0\0"), &["GGUF"]);
        refused(
            &long(b"version https://git-lfs.github.com/spec/v1\noid sha256:"),
            &["Git LFS", "git lfs pull"],
        );
        refused(&long(b"<!DOCTYPE html><html>"), &["HTML"]);
        refused(&long(b"\n<html lang=fr>"), &["HTML"]);
        refused(&long(b"{\"error\":\"not found\"}"), &["JSON"]);
        // 80 02 and six zeros are a pickle's magic and a header length of 640.
        let padded = format!("{:640}", two());
        assert_eq!(padded.len(), 640);
        assert!(Header::parse(&file(&padded, 16)).is_ok());
    }

    #[test]
    fn a_million_empty_tensors_are_read_without_quadratic_time() {
        let mut json = String::with_capacity(80 << 20);
        for i in 0..1_000_000 {
            let comma = if i == 0 { '{' } else { ',' };
            json.push_str(&format!(
                r#"{comma}"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#
            ));
        }
        json.push('}');
        assert_eq!(Header::parse(&file(&json, 0)).unwrap().tensors.len(), 1_000_000);
    }

    /// Flips, inserts and deletes bytes of a valid file: the answer may be anything but a panic.
    #[test]
    fn no_mutation_of_a_valid_file_panics() {
        let valid = file(&two().replacen('{', r#"{"__metadata__":{"format":"pt"},"#, 1), 16);
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        let interesting = b"\x00\xff{}[]\",:-0919.eE\\u";
        for _ in 0..50_000 {
            let mut bytes = valid.clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes[at] = interesting[random(interesting.len())],
                    2 => bytes.insert(at, interesting[random(interesting.len())]),
                    _ => drop(bytes.remove(at)),
                }
            }
            if let Ok(header) = Header::parse(&bytes) {
                assert!(header.tensors.iter().all(|t| bytes.get(t.range.clone()).is_some()));
            }
        }
    }
}
