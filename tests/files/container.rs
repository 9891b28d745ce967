//! A: the safetensors container.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use serde_json::{Map, Value, json};

use crate::tiny::{Folder, Tensor, assemble, safetensors, tensors};
use crate::{Case, bad, good};

const MODEL: &str = "model.safetensors";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn broken_containers_are_refused_by_name() {
    let parts = [lengths(), offsets(), shapes(), names(), files()];
    crate::check(parts.into_iter().flatten());
}

fn lengths() -> Vec<Case> {
    vec![
        bad("A01", "empty file", |f| f.write(MODEL, ""), &["empty (0 bytes)", MODEL]),
        bad("A02", "7 bytes", |f| f.write(MODEL, [1; 7]), &["7 bytes", "8-byte header length"]),
        bad(
            "A03",
            "the header is 2^64 − 1 bytes long",
            |f| f.bytes(|b| b[..8].fill(0xff)),
            &["header length", "18446744073709551615", "too large"],
        ),
        bad(
            "A04",
            "the header is as long as the file",
            |f| {
                f.bytes(|b| {
                    let length = b.len() as u64;
                    b[..8].copy_from_slice(&length.to_le_bytes());
                });
            },
            &["runs past the end of the file", "incomplete"],
        ),
        bad(
            "A05",
            "a header of 100,000,001 bytes in a sparse file",
            |f| {
                f.write(MODEL, 100_000_001_u64.to_le_bytes());
                let file = File::options().write(true).open(f.file(MODEL)).unwrap();
                file.set_len(200 << 20).unwrap();
            },
            &["100000001", "too large"],
        ),
        bad("A06", "the header is not UTF-8", |f| f.bytes(|b| b[20] = 0xff), &["not UTF-8", "20"]),
        bad(
            "A07",
            "the header is `{`",
            |f| f.header_text(|_| "{".to_owned()),
            &["not valid JSON", "byte"],
        ),
        bad(
            "A08",
            "the header is a list",
            |f| f.header_text(|_| "[1, 2]".to_owned()),
            &["expected an object"],
        ),
        bad(
            "A09",
            "lists nested 100,000 deep",
            |f| f.header_text(|_| format!("{{\"__metadata__\":{}", "[".repeat(100_000))),
            &["__metadata__"],
        ),
        bad(
            "A10",
            "one byte is missing",
            |f| f.bytes(|b| b.truncate(b.len() - 1)),
            &["1 bytes early", "truncated", MODEL],
        ),
        bad(
            "A11",
            "half of the file is missing",
            |f| f.bytes(|b| b.truncate(b.len() / 2)),
            &["bytes early", "but the file has", "truncated"],
        ),
        bad("A12", "one byte more", |f| f.bytes(|b| b.push(0)), &["1 byte after the last tensor"]),
        bad(
            "A13",
            "a zip directory at the end",
            |f| f.bytes(|b| b.extend_from_slice(b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")),
            &["22 bytes after the last tensor"],
        ),
    ]
}

/// Moves the bytes of one tensor by `by`.
fn shift(entry: &mut Value, by: i64) {
    let offsets = entry["data_offsets"].as_array_mut().unwrap();
    for offset in offsets {
        *offset = json!(offset.as_i64().unwrap() + by);
    }
}

fn offsets() -> Vec<Case> {
    vec![
        bad(
            "A14",
            "a hole between tensors",
            |f| {
                f.header(|header| {
                    // From the second tensor on, everything moves by 8 bytes.
                    header.iter_mut().skip(1).for_each(|(_, entry)| shift(entry, 8));
                });
                f.bytes(|b| b.extend_from_slice(&[0; 8]));
            },
            &["gap of 8 bytes", "model.layers.0.input_layernorm.weight"],
        ),
        bad(
            "A15",
            "two tensors overlap",
            |f| {
                f.header(|header| {
                    header.iter_mut().skip(1).for_each(|(_, entry)| shift(entry, -8))
                });
                f.bytes(|b| b.truncate(b.len() - 8));
            },
            &[
                "overlap by 8 bytes",
                "model.embed_tokens.weight",
                "model.layers.0.input_layernorm.weight",
            ],
        ),
        bad(
            "A16",
            "offsets reversed",
            |f| f.entry(UP, |e| e["data_offsets"].as_array_mut().unwrap().reverse()),
            &[UP, "reversed"],
        ),
        bad(
            "A17",
            "the last tensor ends far behind the file",
            |f| f.entry("lm_head.weight", |e| shift(e, 1 << 40)),
            &["lm_head.weight", "ends at byte 1099", "but the file has"],
        ),
        bad(
            "A20",
            "the bytes of 63 columns for 64",
            |f| {
                f.entry("model.layers.0.self_attn.q_proj.weight", |e| {
                    let start = e["data_offsets"][0].as_u64().unwrap();
                    e["data_offsets"][1] = json!(start + 64 * 63 * 4);
                });
            },
            &["model.layers.0.self_attn.q_proj.weight", "16128 bytes", "takes 16384"],
        ),
    ]
}

fn shape(folder: &Folder, shape: Value) {
    folder.entry(UP, |entry| entry["shape"] = shape);
}

fn eight_bit(tensor: &mut Tensor) {
    tensor.dtype = "F8_E4M3";
    tensor.data.truncate(tensor.shape.iter().product());
}

/// The weights with `name` in 8-bit floats and this scale.
fn scaled(folder: &Folder, name: &str, scale: Tensor) {
    folder.tensors(|tensors| {
        tensors.iter_mut().filter(|t| t.name == name).for_each(eight_bit);
        tensors.push(Tensor { name: format!("{name}_scale_inv"), ..scale });
    });
}

fn shapes() -> Vec<Case> {
    vec![
        bad(
            "A18",
            "2^66 elements",
            |f| shape(f, json!([1_u64 << 33, 1_u64 << 33])),
            &[UP, "too large"],
        ),
        bad(
            "A19",
            "2^62 elements of 4 bytes",
            |f| shape(f, json!([1_u64 << 62])),
            &[UP, "too large"],
        ),
        bad(
            "A21",
            "a negative dimension",
            |f| shape(f, json!([-1, 64])),
            &[UP, "-1", "unsigned integer"],
        ),
        bad(
            "A22",
            "a dimension 64.0",
            |f| shape(f, json!([96, 64.0])),
            &[UP, "64.0", "unsigned integer"],
        ),
        bad("A23", "65 dimensions", |f| shape(f, json!(vec![1; 65])), &[UP, "rank 65"]),
        bad(
            "A24",
            "an empty tensor",
            |f| {
                f.tensor(UP, |t| {
                    t.shape = vec![0, 64];
                    t.data.clear();
                });
            },
            &[UP, "[0, 64]", "[96, 64]"],
        ),
        bad(
            "A25",
            "a scalar",
            |f| {
                f.tensor(UP, |t| {
                    t.shape = vec![];
                    t.data.truncate(4);
                });
            },
            &[UP, "[]", "[96, 64]"],
        ),
        bad(
            "A26",
            "dtype F7",
            |f| f.entry(UP, |e| e["dtype"] = json!("F7")),
            &[UP, "\"F7\"", "BF16"],
        ),
        bad(
            "A27",
            "integers",
            |f| f.entry(UP, |e| e["dtype"] = json!("I32")),
            &[UP, "I32", "AWQ", "GPTQ"],
        ),
        bad(
            "A28a",
            "8-bit floats without scales",
            |f| f.tensor(UP, eight_bit),
            &[UP, "8-bit floats", "scale", "missing"],
        ),
        bad(
            "A28b",
            "8-bit floats with scales for another matrix",
            |f| scaled(f, UP, Tensor::f32("", &[3], &[1.0; 3])),
            &[UP, "weight_scale_inv", "[3]", "expected [1, 1]"],
        ),
        bad(
            "A28c",
            "a norm in 8-bit floats",
            |f| scaled(f, "model.norm.weight", Tensor::f32("", &[1], &[1.0])),
            &["model.norm.weight", "8-bit floats", "expected a matrix"],
        ),
        bad(
            "A28d",
            "8-bit floats with integer scales",
            |f| {
                let one = Tensor::f32("", &[1], &[1.0]);
                scaled(f, UP, Tensor { dtype: "I32", ..one });
            },
            &["up_proj.weight_scale_inv", "I32"],
        ),
    ]
}

fn names() -> Vec<Case> {
    fn rename(folder: &Folder, name: &str) {
        folder.header_text(|text| text.replace(UP, name));
    }
    vec![
        bad(
            "A29",
            "one name twice",
            |f| f.header_text(|text| text.replace("layers.1.mlp.up_proj", "layers.0.mlp.up_proj")),
            &["`model.layers.0.mlp.up_proj.weight` stands twice"],
        ),
        bad(
            "A30",
            "a tensor called __metadata__",
            |f| rename(f, "__metadata__"),
            &["`__metadata__`"],
        ),
        bad(
            "A31",
            "metadata that is not text",
            |f| f.header(|h| drop(h.insert("__metadata__".to_owned(), json!({"a": {"b": 1}})))),
            &["`__metadata__`", "string"],
        ),
        bad("A32a", "a name of 1 MiB", |f| rename(f, &"n".repeat(1 << 20)), &["1048576 bytes"]),
        bad("A32b", "NUL in a name", |f| rename(f, "a\\u0000b"), &["control character"]),
        bad(
            "A32c",
            "an escape sequence in a name",
            |f| rename(f, "\\u001b[2J"),
            &["control character"],
        ),
        bad(
            "A32d",
            "reversed text in a name",
            |f| f.tensors(|t| t.push(Tensor::f32("a\u{202e}b", &[1], &[0.0]))),
            &["`a\\u{202e}b` is not used"],
        ),
        bad(
            "A33",
            "1,000,000 empty tensors",
            |f| {
                let entry = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
                let header: Map<String, Value> =
                    (0..1_000_000).map(|i| (format!("t{i}"), entry.clone())).collect();
                f.write(MODEL, assemble(&Value::Object(header).to_string(), &[]));
            },
            &["model.embed_tokens.weight", "missing"],
        ),
    ]
}

fn files() -> Vec<Case> {
    vec![
        good(
            "A34",
            "data at odd addresses",
            |f| {
                f.bytes(|b| {
                    let length = u64::from_le_bytes(*b.first_chunk().unwrap()) + 1;
                    b[..8].copy_from_slice(&length.to_le_bytes());
                    b.insert(length as usize + 7, b' ');
                });
            },
            &[],
        ),
        bad(
            "A35a",
            "a pickle",
            |f| f.bytes(|b| b.splice(..0, *b"\x80\x02}q\0(X").for_each(drop)),
            &["pickle", "never loaded"],
        ),
        bad(
            "A35b",
            "a zip",
            |f| f.bytes(|b| b.splice(..0, *b"PK\x03\x04").for_each(drop)),
            &["zip", "never loaded"],
        ),
        bad("A36a", "GGUF", |f| f.write(MODEL, b"GGUF\x03\0\0\0and more bytes"), &["GGUF"]),
        bad("A36b", "a web page", |f| f.write(MODEL, "<!DOCTYPE html><html>404</html>"), &["HTML"]),
        bad(
            "A36c",
            "a Git LFS pointer",
            |f| {
                f.write(
                    MODEL,
                    "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
                )
            },
            &["Git LFS pointer", "git lfs pull"],
        ),
        bad(
            "A37a",
            "a folder",
            |f| {
                f.remove(MODEL);
                fs::create_dir(f.file(MODEL)).unwrap();
            },
            &["a folder", MODEL],
        ),
        bad(
            "A37b",
            "a pipe",
            |f| {
                f.remove(MODEL);
                let made = std::process::Command::new("mkfifo").arg(f.file(MODEL)).status();
                assert!(made.unwrap().success());
            },
            &["not a regular file", MODEL],
        ),
        bad(
            "A37c",
            "a link to a device",
            |f| {
                f.remove(MODEL);
                symlink("/dev/zero", f.file(MODEL)).unwrap();
            },
            &["/dev/zero", "outside the model folder"],
        ),
        bad(
            "A38",
            "a link to itself",
            |f| {
                f.remove(MODEL);
                symlink(MODEL, f.file(MODEL)).unwrap();
            },
            &["link loop", MODEL],
        ),
    ]
}

/// Root may read everything, so the row of a forbidden file stands alone.
#[test]
fn a_file_without_permission_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    fs::set_permissions(folder.file(MODEL), fs::Permissions::from_mode(0o0)).unwrap();
    if File::open(folder.file(MODEL)).is_ok() {
        eprintln!("skipped: this user may read every file");
        return;
    }
    let outcome = crate::generate(folder.path(), &[]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(MODEL), "{}", outcome.stderr);
}

#[test]
fn misaligned_weights_give_the_same_bits() {
    let (even, odd) = (Folder::new(), Folder::new());
    for dtype in ["F32", "BF16", "F16"] {
        let mut tensors = tensors();
        for tensor in &mut tensors {
            match dtype {
                "BF16" => tensor.make_bf16(),
                "F16" => tensor.make_f16(),
                _ => {}
            }
        }
        let file = safetensors(&tensors);
        even.write(MODEL, &file);
        let (length, rest) = file.split_first_chunk().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let mut shifted = (header.len() as u64 + 1).to_le_bytes().to_vec();
        shifted.extend([header, b" ", data].concat());
        odd.write(MODEL, shifted);
        assert!(crate::logits(&even, "5,6,7") == crate::logits(&odd, "5,6,7"), "{dtype}");
    }
}
