//! Files of other kinds that are met under the name of a weight file, known by their first bytes.

/// A kind of file that is not safetensors, and what its finder should do.
pub(super) struct Kind {
    /// What the file is, with its article.
    pub(super) name: &'static str,
    /// What follows.
    pub(super) so: &'static str,
    /// The next step.
    pub(super) hint: &'static str,
}

const PICKLE: Kind = Kind {
    name: "a pickle or zip file (a PyTorch checkpoint)",
    so: "a pickle can run any program when it is read; it is never loaded",
    hint: "a copy of the model in safetensors",
};
const GGUF: Kind = Kind {
    name: "a GGUF file",
    so: "this format is not read",
    hint: "the original model in safetensors",
};
const LFS: Kind = Kind {
    name: "a Git LFS pointer",
    so: "the weights themselves were not fetched",
    hint: "git lfs pull",
};
const WEB_PAGE: Kind = Kind {
    name: "a web page (HTML or XML)",
    so: "the server answered with a page instead of the file",
    hint: "pulling the model again",
};
const JSON: Kind = Kind {
    name: "a JSON text",
    so: "it may be an index or an error message of a server",
    hint: "pulling the model again",
};
const GZIP: Kind =
    Kind { name: "a gzip file", so: "nothing was loaded", hint: "unpacking it first" };
const HDF5: Kind = Kind {
    name: "an HDF5 file (a Keras or TensorFlow checkpoint)",
    so: "this format is not read",
    hint: "a copy of the model in safetensors",
};

/// What `file` is, if its first bytes are those of a known other format.
///
/// Only for a file that cannot be safetensors: the bytes `80 02 00 00 00 00 00 00` open a pickle, but also
/// a valid header of 640 bytes.
pub(super) fn recognise(file: &[u8]) -> Option<&'static Kind> {
    let starts = |magic: &[u8]| file.starts_with(magic);
    let text: Vec<u8> = file
        .iter()
        .take(64)
        .skip_while(|b| b.is_ascii_whitespace() || b"\xef\xbb\xbf".contains(b))
        .map(u8::to_ascii_lowercase)
        .collect();
    Some(match () {
        () if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") => &PICKLE,
        () if matches!(file, [0x80, 1..=5, ..]) => &PICKLE,
        () if starts(b"GGUF") || starts(b"GGML") || starts(b"ggjt") => &GGUF,
        () if starts(b"version https://git-lfs") => &LFS,
        () if starts(b"\x1f\x8b") => &GZIP,
        () if starts(b"\x89HDF") => &HDF5,
        () if [&b"<!doctype"[..], b"<html", b"<?xml"].iter().any(|tag| text.starts_with(tag)) => {
            &WEB_PAGE
        }
        () if text.first() == Some(&b'{') => &JSON,
        () => return None,
    })
}
