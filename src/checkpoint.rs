//! files → named tensors: sharded safetensors, Mistral-native, mapped and never copied.
//!
//! [`Checkpoint::open`] chooses one copy of the weights, maps its files and checks every header before a
//! tensor is handed out. What comes out is names, shapes and bytes; what they mean is the model's affair.

pub mod header;
pub mod index;

mod candle;
mod magic;
mod mapping;
mod select;
mod tensor;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use mapping::Bytes;
pub use safetensors::Dtype;
pub use tensor::TensorData;

use crate::error::{Error, ErrorKind, Result};
use crate::files::{ModelFiles, open_regular};
use header::Header;
use index::Index;

/// How a checkpoint names and stores its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The names of Hugging Face transformers: `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// Mistral's own names, `layers.0.attention.wq.weight`; Q and K are stored for interleaved rotation.
    MistralNative,
}

/// A weight file that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFile {
    /// Where it is; for bytes in memory, how messages name them.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// The named tensors of a model, over read-only mappings of its files; cheap to clone.
///
/// The mapped files must stay as they are while a clone lives: one that is overwritten gives other weights,
/// one that is cut ends the process with SIGBUS (the command line then says so). Programs that download models replace files whole, so that
/// an open mapping keeps the old content.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sorted by name.
    tensors: Vec<TensorData>,
    files: Vec<WeightFile>,
    notes: Vec<String>,
    total_bytes: u64,
}

impl Checkpoint {
    /// Opens the weights of a model.
    ///
    /// In a folder, the first of these is loaded: `model.safetensors.index.json` with its shards,
    /// `model.safetensors`, numbered `model-…` files, the same three for `consolidated` (Mistral's own layout), any
    /// other `*.safetensors` that is alone. [`Self::notes`] says what was left aside.
    ///
    /// # Errors
    ///
    /// If there are no weights, or any file breaks a rule of the format: see [`Header::parse`] and [`Index::parse`].
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let choice = match files {
            ModelFiles::BuiltIn => {
                let name = "model.safetensors";
                return match files.read(name, u64::MAX)? {
                    Some(std::borrow::Cow::Borrowed(bytes)) => {
                        Self::from_bytes(bytes, &files.place(name))
                    }
                    Some(std::borrow::Cow::Owned(bytes)) => {
                        Self::from_bytes(bytes, &files.place(name))
                    }
                    None => {
                        Err(Error::new(ErrorKind::NotFound, "this program has no built-in model"))
                    }
                };
            }
            ModelFiles::Folder { path, weights: Some(weights) } => select::named(path, weights)?,
            ModelFiles::Folder { path, weights: None } => select::choose(path)?,
        };
        let mut inner = Inner { notes: choice.notes, ..Inner::default() };
        for path in &choice.files {
            inner.add_file(path)?;
        }
        inner.sort()?;
        if let Some((index, place)) = &choice.index {
            inner.compare_with(index).map_err(|e| e.at(place))?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The tensors of one safetensors file whose content is `bytes`; `name` is how messages call it.
    ///
    /// # Errors
    ///
    /// If the content breaks a rule of the format: see [`Header::parse`].
    pub fn from_bytes(bytes: impl Into<Bytes>, name: &str) -> Result<Self> {
        let mut inner = Inner::default();
        inner.add(bytes.into(), Path::new(name))?;
        inner.sort()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How the tensors are named and stored, told by their names.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let native = [
            "tok_embeddings.weight",
            "layers.0.attention.wq.weight",
            "layers.0.attention.wkv_a_with_mqa.weight",
            "model.backbone.embedding.weight",
        ];
        if native.iter().any(|name| self.get(name).is_some()) {
            Layout::MistralNative
        } else {
            Layout::HuggingFace
        }
    }

    /// The tensor `name`, if there is one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorData> {
        let tensors = &self.inner.tensors;
        let found = tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name));
        found.ok().map(|i| &tensors[i])
    }

    /// The tensor `name`.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn require(&self, name: &str) -> Result<&TensorData> {
        self.get(name).ok_or_else(|| {
            Error::bad_model(format!("the tensor `{name}` is missing")).at(self.place())
        })
    }

    /// How a message names the files together.
    #[must_use]
    pub fn place(&self) -> String {
        match self.files() {
            [first, .., last] => format!("{} to {}", first.path.display(), last.path.display()),
            [only] => only.path.display().to_string(),
            [] => String::new(),
        }
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorData> {
        self.inner.tensors.iter()
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inner.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// What the person who loads the model may want to know: a second copy of the weights, an index that
    /// does not quite fit its files.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.inner.notes
    }

    /// The size of all tensors in bytes, as stored.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.inner.total_bytes
    }

    /// The files that were opened.
    #[must_use]
    pub fn files(&self) -> &[WeightFile] {
        &self.inner.files
    }

    /// Tells the operating system that the stored bytes of `tensor` are not needed now, because they were packed.
    ///
    /// A hint: they stay readable.
    pub fn release(&self, tensor: &TensorData) {
        tensor.bytes.release();
    }
}

impl Inner {
    fn add_file(&mut self, path: &Path) -> Result<()> {
        let Some((file, size)) = open_regular(path)? else {
            return Err(Error::new(ErrorKind::NotFound, "the weight file does not exist")
                .at(path.display()));
        };
        // An empty file cannot be mapped; its header is refused like that of any other short file.
        let bytes = if size == 0 { Bytes::from(Vec::new()) } else { Bytes::map(&file, path)? };
        self.add(bytes, path)
    }

    fn add(&mut self, bytes: Bytes, path: &Path) -> Result<()> {
        let place: Arc<str> = path.display().to_string().into();
        let header = Header::parse(&bytes).map_err(|e| e.at(&place))?;
        self.tensors.reserve(header.tensors.len());
        for entry in header.tensors {
            // `parse` promises ranges inside the file.
            let Some(bytes) = bytes.slice(entry.range) else { continue };
            let (name, dtype, shape) = (entry.name, entry.dtype, entry.shape);
            self.total_bytes += bytes.len() as u64;
            self.tensors.push(TensorData { name, dtype, shape, bytes, file: place.clone() });
        }
        self.files.push(WeightFile { path: path.to_owned(), size: bytes.len() as u64 });
        Ok(())
    }

    /// Sorts the tensors by name, and refuses a name that two files share.
    fn sort(&mut self) -> Result<()> {
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in self.tensors.windows(2) {
            if pair[0].name == pair[1].name {
                return Err(Error::bad_model(format!(
                    "the tensor `{}` is in two files",
                    pair[0].name
                ))
                .at(format!("{} and {}", pair[0].file, pair[1].file))
                .so("one of them is wrong, and nothing tells which"));
            }
        }
        Ok(())
    }

    /// Checks that every tensor is in the file that the index names, and notes what the index leaves out.
    fn compare_with(&mut self, index: &Index) -> Result<()> {
        let places: Vec<String> =
            self.files.iter().map(|file| file.path.display().to_string()).collect();
        for (name, &shard) in &index.tensors {
            let found = self.tensors.binary_search_by(|tensor| tensor.name.cmp(name));
            let place: Option<&str> = found.ok().map(|i| &*self.tensors[i].file);
            // Files were added in the order of the shards.
            if place != places.get(shard).map(String::as_str) {
                let shard = &index.shards[shard];
                let found = place.map_or("nowhere".to_owned(), |place| format!("in {place}"));
                return Err(Error::bad_model(format!(
                    "the tensor `{name}` is not in {shard}, where the index puts it, but {found}"
                ))
                .hint("pulling the model again"));
            }
        }
        let indexed = index.tensors.len();
        if self.tensors.len() > indexed {
            let mut extra = self.tensors.iter().filter(|t| !index.tensors.contains_key(&t.name));
            let example = extra.next().map_or("", |tensor| tensor.name.as_str());
            let count = self.tensors.len() - indexed;
            self.notes.push(format!(
                "the files hold {count} tensors that the index does not name, such as `{example}`"
            ));
        }
        let total = self.total_bytes;
        if let Some(claimed) = index.total_size.filter(|claimed| *claimed != total) {
            self.notes.push(format!(
                "the index claims {claimed} bytes of tensors, the files hold {total}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A safetensors file of f32 vectors, each as long as its number says.
    fn weights(tensors: &[(&str, usize)]) -> Vec<u8> {
        let zeros = vec![0; 4 * tensors.iter().map(|(_, n)| *n).max().unwrap_or(0)];
        let views = tensors.iter().map(|(name, n)| {
            (
                *name,
                safetensors::tensor::TensorView::new(Dtype::F32, vec![*n], &zeros[..4 * n])
                    .unwrap(),
            )
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn open(folder: &tempfile::TempDir) -> Result<Checkpoint> {
        Checkpoint::open(&ModelFiles::folder(folder.path()))
    }

    #[track_caller]
    fn refused(folder: &tempfile::TempDir, words: &[&str]) {
        let message = open(folder).expect_err("the folder must be refused").to_string();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in:\n{message}");
        }
    }

    fn index(map: &[(&str, &str)]) -> Vec<u8> {
        let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k:?}: {v:?}")).collect();
        format!("{{\"weight_map\": {{{}}}}}", pairs.join(", ")).into_bytes()
    }

    const INDEX: &str = "model.safetensors.index.json";

    #[test]
    fn a_single_file_is_mapped() {
        let folder = folder(&[("model.safetensors", &weights(&[("b", 2), ("a", 3)]))]);
        let checkpoint = open(&folder).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        let a = checkpoint.require("a").unwrap();
        assert!(a.bytes.is_mapped());
        checkpoint.release(a);
        assert_eq!(a.to_f32().unwrap(), [0.0; 3]);
        assert_eq!(checkpoint.total_bytes(), 20);
        assert_eq!(checkpoint.layout(), Layout::HuggingFace);
        let missing = checkpoint.require("c").unwrap_err().to_string();
        assert!(
            missing.contains("`c` is missing") && missing.contains("model.safetensors"),
            "{missing}"
        );
    }

    #[test]
    fn one_of_two_copies_is_loaded_and_the_note_says_which() {
        let hf = weights(&[("model.embed_tokens.weight", 1)]);
        let native = weights(&[("tok_embeddings.weight", 1)]);
        let both = [
            ("consolidated.safetensors", &*native),
            ("model.safetensors", &*hf),
            ("config.json", b"{}"),
        ];
        let checkpoint = open(&folder(&both)).unwrap();
        assert_eq!(checkpoint.layout(), Layout::HuggingFace);
        assert!(checkpoint.notes()[0].contains("left aside consolidated.safetensors"));

        let checkpoint = open(&folder(&[both[0], both[1], ("params.json", b"{}")])).unwrap();
        assert_eq!(checkpoint.layout(), Layout::MistralNative);

        let shard = "model-00001-of-00001.safetensors";
        let map = index(&[("model.embed_tokens.weight", shard)]);
        let checkpoint = open(&folder(&[both[0], both[1], (INDEX, &map), (shard, &hf)])).unwrap();
        assert_eq!(checkpoint.files().len(), 1);
        assert!(checkpoint.files()[0].path.ends_with(shard));
        let note = &checkpoint.notes()[0];
        assert!(note.contains("left aside model.safetensors, consolidated.safetensors"), "{note}");
    }

    #[test]
    fn a_file_may_be_named_or_alone() {
        let files =
            [("x.safetensors", &*weights(&[("x", 1)])), ("y.safetensors", &weights(&[("y", 1)]))];
        assert!(open(&folder(&files[..1])).unwrap().get("x").is_some());
        let folder = folder(&files);
        refused(&folder, &["several weight files", "x.safetensors, y.safetensors"]);
        let named = folder.path().join("y.safetensors");
        let files = ModelFiles::Folder { path: folder.path().to_owned(), weights: Some(named) };
        assert!(Checkpoint::open(&files).unwrap().get("y").is_some());
    }

    #[test]
    fn folders_without_weights_say_what_is_there_instead() {
        refused(&folder(&[]), &["no weights", "model.safetensors"]);
        refused(
            &folder(&[("pytorch_model.bin", b"PK")]),
            &["pickle (pytorch_model.bin)", "never loaded"],
        );
        refused(&folder(&[("model-q4.gguf", b"GGUF")]), &["GGUF (model-q4.gguf)"]);
        let adapter = weights(&[("lora_A", 1)]);
        refused(
            &folder(&[("adapter_config.json", b"{}"), ("adapter_model.safetensors", &adapter)]),
            &["LoRA adapter", "adapter_config.json"],
        );
        let nowhere = Checkpoint::open(&ModelFiles::folder("/nonexistent/model")).unwrap_err();
        assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn shards_are_read_together() {
        let map = index(&[("a", "1.safetensors"), ("b", "2.safetensors")]);
        let (one, two) = (weights(&[("a", 1)]), weights(&[("b", 2)]));
        let whole = folder(&[(INDEX, &map), ("1.safetensors", &one), ("2.safetensors", &two)]);
        let checkpoint = open(&whole).unwrap();
        assert_eq!(checkpoint.total_bytes(), 12);
        assert!(checkpoint.require("b").unwrap().file.ends_with("2.safetensors"));
        assert_eq!(checkpoint.notes(), [""; 0]);

        refused(
            &folder(&[(INDEX, &map), ("2.safetensors", &two)]),
            &["1 of 2 weight files are missing", "1.safetensors", INDEX, "pull"],
        );
        refused(
            &folder(&[(INDEX, &map), ("1.safetensors", &one), ("2.safetensors", &one)]),
            &["`a` is in two files"],
        );
        let other = weights(&[("c", 2)]);
        refused(
            &folder(&[(INDEX, &map), ("1.safetensors", &one), ("2.safetensors", &other)]),
            &["`b` is not in 2.safetensors", INDEX],
        );
        let more = weights(&[("b", 2), ("c", 2)]);
        let checkpoint =
            open(&folder(&[(INDEX, &map), ("1.safetensors", &one), ("2.safetensors", &more)]))
                .unwrap();
        assert!(
            checkpoint.notes()[0].contains("1 tensors that the index does not name, such as `c`")
        );
    }

    #[test]
    fn numbered_files_need_no_index_but_all_of_them() {
        let names =
            ["consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"];
        let files = [(names[0], &*weights(&[("a", 1)])), (names[1], &weights(&[("b", 1)]))];
        assert_eq!(open(&folder(&files)).unwrap().names().len(), 2);
        refused(&folder(&files[1..]), &["found 1 numbered weight files", "00001 to 00002"]);
    }

    #[test]
    fn a_wrong_total_size_is_only_noted() {
        let map = br#"{"metadata": {"total_size": 7}, "weight_map": {"a": "1.safetensors"}}"#;
        let checkpoint =
            open(&folder(&[(INDEX, map), ("1.safetensors", &weights(&[("a", 1)]))])).unwrap();
        assert_eq!(checkpoint.notes(), ["the index claims 7 bytes of tensors, the files hold 4"]);
    }

    #[test]
    fn an_empty_file_is_refused() {
        refused(&folder(&[("model.safetensors", b"")]), &["empty", "model.safetensors"]);
    }

    #[cfg(unix)]
    mod links {
        use std::os::unix::fs::symlink;

        use super::*;

        #[test]
        fn only_the_hubs_cache_may_be_linked() {
            let cache = tempfile::tempdir().unwrap();
            let snapshot = cache.path().join("snapshots/main");
            let blobs = cache.path().join("blobs");
            fs::create_dir_all(&snapshot).unwrap();
            fs::create_dir_all(&blobs).unwrap();
            let hash = "0123456789abcdef".repeat(4);
            fs::write(blobs.join(&hash), weights(&[("a", 1)])).unwrap();
            let link = snapshot.join("model.safetensors");
            symlink(format!("../../blobs/{hash}"), &link).unwrap();
            let files = ModelFiles::folder(&snapshot);
            assert!(Checkpoint::open(&files).unwrap().get("a").is_some());

            for target in
                [blobs.join(&hash).to_str().unwrap(), "../../blobs/x", "/dev/zero", "../main/x"]
            {
                fs::remove_file(&link).unwrap();
                symlink(target, &link).unwrap();
                let message = Checkpoint::open(&files).unwrap_err().to_string();
                assert!(message.contains("outside the model folder"), "{target}: {message}");
            }
        }

        #[test]
        fn loops_folders_and_pipes_are_refused_at_once() {
            let looped = folder(&[]);
            symlink("model.safetensors", looped.path().join("model.safetensors")).unwrap();
            refused(&looped, &["link loop", "model.safetensors"]);
            let directory = folder(&[]);
            fs::create_dir(directory.path().join("model.safetensors")).unwrap();
            refused(&directory, &["found a folder, expected a file"]);
        }
    }
}
