//! A tiny Mistral in a folder of its own, made in memory, and the ways to spoil it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Width of the residual stream.
pub(crate) const HIDDEN: usize = 64;
/// Rows of the embedding.
pub(crate) const VOCAB: usize = 300;
/// The name of the index of a sharded model.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The two shards that [`Folder::shard`] makes.
pub(crate) const SHARDS: [&str; 2] =
    ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A tensor as the file will hold it.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Tensor {
    /// A tensor of f32 values.
    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { name: name.to_owned(), dtype: "F32", shape: shape.to_vec(), data }
    }

    /// The values, which must be f32.
    pub(crate) fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, "F32");
        self.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// Replaces the values.
    pub(crate) fn fill(&mut self, value: impl Fn(usize) -> f32) {
        let n = self.shape.iter().product();
        self.data = (0..n).flat_map(|i| value(i).to_le_bytes()).collect();
        self.dtype = "F32";
    }

    /// Stores the values as BF16.
    pub(crate) fn make_bf16(&mut self) {
        let values = self.values();
        self.data = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        self.dtype = "BF16";
    }

    /// Stores the values as F16.
    pub(crate) fn make_f16(&mut self) {
        let values = self.values();
        self.data = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        self.dtype = "F16";
    }
}

/// The configuration: two layers, four query heads over two key/value heads of 16.
pub(crate) fn config() -> Map<String, Value> {
    let Value::Object(map) = json!({
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }) else {
        unreachable!("the literal is an object")
    };
    map
}

/// The tensors that [`config`] asks for.
pub(crate) fn tensors() -> Vec<Tensor> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![64, HIDDEN]),
            ("self_attn.k_proj", vec![32, HIDDEN]),
            ("self_attn.v_proj", vec![32, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 64]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![96, HIDDEN]),
            ("mlp.up_proj", vec![96, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, 96]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    shapes.push(("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]));
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let n = shape.iter().product();
        let centre = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..n).map(|_| centre + 0.3 * random()).collect();
        Tensor::f32(&name, &shape, &values)
    };
    shapes.into_iter().map(tensor).collect()
}

/// The safetensors file of `tensors`, in their order.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.data);
        let entry = json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()],
        });
        header.insert(tensor.name.clone(), entry);
    }
    assemble(&Value::Object(header).to_string(), &data)
}

/// A file with `header` before `data`, padded so that the data is aligned.
pub(crate) fn assemble(header: &str, data: &[u8]) -> Vec<u8> {
    let length = header.len().next_multiple_of(8);
    let mut file = (length as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(8 + length, b' ');
    file.extend_from_slice(data);
    file
}

/// A folder with the tiny model; it is removed when dropped.
pub(crate) struct Folder {
    dir: TempDir,
}

impl Folder {
    /// The valid model.
    pub(crate) fn new() -> Self {
        let folder = Self { dir: tempfile::tempdir().expect("a temporary folder") };
        folder.config(|_| {});
        folder.tensors(|_| {});
        folder
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of one of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes one of its files.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(name), content).expect("the file is written");
    }

    /// Removes one of its files.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("the file is removed");
    }

    /// Writes the configuration with an edit.
    pub(crate) fn config(&self, edit: impl FnOnce(&mut Map<String, Value>)) {
        let mut config = config();
        edit(&mut config);
        self.write("config.json", Value::Object(config).to_string());
    }

    /// Writes the configuration with one key changed.
    pub(crate) fn set(&self, key: &str, value: Value) {
        self.config(|config| drop(config.insert(key.to_owned(), value)));
    }

    /// Writes the configuration without one key.
    pub(crate) fn unset(&self, key: &str) {
        self.config(|config| drop(config.remove(key)));
    }

    /// Writes the weights with an edit.
    pub(crate) fn tensors(&self, edit: impl FnOnce(&mut Vec<Tensor>)) {
        let mut tensors = tensors();
        edit(&mut tensors);
        self.write("model.safetensors", safetensors(&tensors));
    }

    /// Writes the weights with one tensor changed.
    pub(crate) fn tensor(&self, name: &str, edit: impl FnOnce(&mut Tensor)) {
        self.tensors(|tensors| {
            edit(tensors.iter_mut().find(|t| t.name == name).expect("a tensor of that name"));
        });
    }

    /// Edits the bytes of the weight file.
    pub(crate) fn bytes(&self, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file("model.safetensors")).expect("the weights are read");
        edit(&mut bytes);
        self.write("model.safetensors", bytes);
    }

    /// Edits the header of the weight file as text, the data stays.
    pub(crate) fn header_text(&self, edit: impl FnOnce(String) -> String) {
        self.bytes(|bytes| {
            let (header, data) = split(bytes);
            *bytes = assemble(&edit(header), &data);
        });
    }

    /// Edits the header of the weight file as JSON, the data stays.
    pub(crate) fn header(&self, edit: impl FnOnce(&mut Map<String, Value>)) {
        self.header_text(|text| {
            let mut map = serde_json::from_str(&text).expect("the header is JSON");
            edit(&mut map);
            Value::Object(map).to_string()
        });
    }

    /// Edits the header's entry of one tensor.
    pub(crate) fn entry(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        self.header(|header| edit(header.get_mut(name).expect("a tensor of that name")));
    }

    /// Replaces the single weight file by two shards and their index.
    pub(crate) fn shard(&self) {
        let tensors = tensors();
        let (first, second) = tensors.split_at(11);
        self.write(SHARDS[0], safetensors(first));
        self.write(SHARDS[1], safetensors(second));
        self.remove("model.safetensors");
        self.index(|_| {});
    }

    /// Writes the index of [`Self::shard`] with an edit.
    pub(crate) fn index(&self, edit: impl FnOnce(&mut Value)) {
        let tensors = tensors();
        let place =
            |(i, t): (usize, &Tensor)| (t.name.clone(), json!(SHARDS[usize::from(i >= 11)]));
        let map: Map<String, Value> = tensors.iter().enumerate().map(place).collect();
        let total: usize = tensors.iter().map(|t| t.data.len()).sum();
        let mut index = json!({"metadata": {"total_size": total}, "weight_map": map});
        edit(&mut index);
        self.write(INDEX, index.to_string());
    }
}

/// The header's text and the data of a weight file.
fn split(bytes: &[u8]) -> (String, Vec<u8>) {
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a whole file");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (String::from_utf8(header.to_vec()).expect("the header is text"), data.to_vec())
}
