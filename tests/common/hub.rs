//! A hub on loopback: two servers, as the real one has. One lists files and redirects, the other (on another
//! port, so another origin) has the contents. Tests bend single answers with [`FakeHub::bend`].

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub(crate) const REPO: &str = "essai/mistral-mini";

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Hub,
    Store,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) at: At,
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// How many bytes of the body were sent back.
    sent: Arc<AtomicU64>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// An answer, and how it is spoilt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Send no `Content-Length`: the end of the connection is the end of the body.
    pub(crate) no_length: bool,
    /// Send another `Content-Length`.
    pub(crate) length: Option<u64>,
    /// Close the connection without any answer.
    pub(crate) reset: bool,
    /// Say nothing for so long before the answer.
    pub(crate) silent: Duration,
    /// Pause after each 64 KiB of the body.
    pub(crate) pace: Duration,
}

impl Answer {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn json(text: &str) -> Self {
        Self { body: text.as_bytes().to_vec(), ..Self::new(200) }
    }
}

type Bend = Box<dyn Fn(&Request, Answer) -> Answer + Send + Sync>;

struct State {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    commit: Mutex<String>,
    /// Prefix of the store's ETags.
    version: Mutex<String>,
    log: Mutex<Vec<Request>>,
    bend: Mutex<Bend>,
    ended: AtomicBool,
    hub: String,
    store: String,
}

pub(crate) struct FakeHub {
    state: Arc<State>,
}

impl FakeHub {
    /// A hub with one model whose weights have `weights` bytes.
    pub(crate) fn new(weights: usize) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let (hub, store) = (listen(), listen());
        let state = Arc::new(State {
            files: Mutex::default(),
            commit: Mutex::new("0123456789abcdef0123456789abcdef01234567".to_owned()),
            version: Mutex::new("v1".to_owned()),
            log: Mutex::default(),
            bend: Mutex::new(Box::new(|_, answer| answer)),
            ended: AtomicBool::new(false),
            hub: address(&hub),
            store: address(&store),
        });
        for (listener, at) in [(hub, At::Hub), (store, At::Store)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || serve(&listener, at, &state));
        }
        let fake = Self { state };
        fake.put("config.json", br#"{"model_type": "mistral"}"#);
        fake.put("tokenizer.json", b"{}");
        fake.put("README.md", b"# essai");
        fake.put("pytorch_model.bin", b"pickle");
        fake.put("model.safetensors", &noise(weights));
        fake
    }

    /// The address of the hub, for `HF_ENDPOINT`.
    pub(crate) fn endpoint(&self) -> &str {
        &self.state.hub
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        self.state.files.lock().unwrap().insert(name.to_owned(), content.to_vec());
    }

    pub(crate) fn remove(&self, name: &str) {
        self.state.files.lock().unwrap().remove(name);
    }

    pub(crate) fn file(&self, name: &str) -> Vec<u8> {
        self.state.files.lock().unwrap()[name].clone()
    }

    pub(crate) fn commit(&self) -> String {
        self.state.commit.lock().unwrap().clone()
    }

    pub(crate) fn set_commit(&self, commit: &str) {
        commit.clone_into(&mut self.state.commit.lock().unwrap());
    }

    /// Makes the store's ETags other ones.
    pub(crate) fn set_version(&self, version: &str) {
        version.clone_into(&mut self.state.version.lock().unwrap());
    }

    /// Passes every answer through `bend` before it is sent.
    pub(crate) fn bend(&self, bend: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static) {
        *self.state.bend.lock().unwrap() = Box::new(bend);
    }

    /// Answers truthfully again, and forgets what was asked.
    pub(crate) fn reset(&self) {
        self.bend(|_, answer| answer);
        self.forget();
    }

    /// Forgets what was asked.
    pub(crate) fn forget(&self) {
        self.state.log.lock().unwrap().clear();
    }

    pub(crate) fn log(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    /// How many bytes of weights were sent for what was asked since the last reset.
    pub(crate) fn sent(&self) -> u64 {
        let log = self.state.log.lock().unwrap();
        let store = log.iter().filter(|request| request.at == At::Store);
        store.map(|request| request.sent.load(Ordering::SeqCst)).sum()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        for address in [&self.state.hub, &self.state.store] {
            let _ = TcpStream::connect(address.trim_start_matches("http://"));
        }
    }
}

/// Bytes without a pattern.
pub(crate) fn noise(n: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()[3]
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

pub(crate) fn git_sha1(content: &[u8]) -> String {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

fn serve(listener: &TcpListener, at: At, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.ended.load(Ordering::SeqCst) {
            return;
        }
        let state = Arc::clone(state);
        // A client that goes away in the middle is part of the tests.
        std::thread::spawn(move || stream.and_then(|stream| converse(stream, at, &state)));
    }
}

fn converse(stream: TcpStream, at: At, state: &State) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader, at)? {
        state.log.lock().unwrap().push(request.clone());
        let truth = match at {
            At::Hub => hub_answer(&request, state),
            At::Store => store_answer(&request, state),
        };
        let answer = (state.bend.lock().unwrap())(&request, truth);
        if !send(&stream, &request, &answer)? {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>, at: At) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Ok(Some(Request { at, method, path, headers, sent: Arc::default() }))
}

fn hub_answer(request: &Request, state: &State) -> Answer {
    let files = state.files.lock().unwrap();
    let commit = state.commit.lock().unwrap().clone();
    let path = request.path.split('?').next().unwrap();
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let known = rest.split_once("/revision/");
        return match known {
            Some((REPO, revision)) if revision == "main" || revision == commit => {
                Answer::json(&list(&files, &commit))
            }
            Some((REPO, _)) => Answer::new(404).header("X-Error-Code", "RevisionNotFound"),
            _ => Answer::new(401).header("X-Error-Code", "RepoNotFound"),
        };
    }
    let Some(name) = path.strip_prefix(&format!("/{REPO}/resolve/{commit}/")) else {
        return Answer::new(404);
    };
    let Some(content) = files.get(name) else {
        return Answer::new(404).header("X-Error-Code", "EntryNotFound");
    };
    let answer = Answer::new(200).header("X-Repo-Commit", &commit);
    if is_large(name) {
        let page = b"moved".to_vec();
        let size = content.len().to_string();
        Answer { status: 302, body: page, ..answer }
            .header("X-Linked-Etag", &format!("\"{}\"", sha256(content)))
            .header("X-Linked-Size", &size)
            .header("Location", &format!("{}/{name}?signature=secret", state.store))
    } else {
        let tag = format!("\"{}\"", git_sha1(content));
        Answer { body: content.clone(), ..answer }.header("ETag", &tag)
    }
}

fn list(files: &BTreeMap<String, Vec<u8>>, commit: &str) -> String {
    let siblings: Vec<String> = files
        .iter()
        .map(|(name, content)| {
            let (size, blob) = (content.len(), git_sha1(content));
            let lfs = if is_large(name) {
                let sha256 = sha256(content);
                format!(r#", "lfs": {{"sha256": "{sha256}", "size": {size}, "pointerSize": 134}}"#)
            } else {
                String::new()
            };
            format!(r#"{{"rfilename": "{name}", "size": {size}, "blobId": "{blob}"{lfs}}}"#)
        })
        .collect();
    format!(r#"{{"id": "{REPO}", "sha": "{commit}", "siblings": [{}]}}"#, siblings.join(", "))
}

fn store_answer(request: &Request, state: &State) -> Answer {
    let name = request.path.split('?').next().unwrap().trim_start_matches('/');
    let files = state.files.lock().unwrap();
    let Some(content) = files.get(name) else { return Answer::new(404) };
    let tag = format!("\"{}-{name}\"", state.version.lock().unwrap());
    let answer = Answer::new(200).header("ETag", &tag).header("Accept-Ranges", "bytes");
    let from = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) if request.header("if-range").is_none_or(|wanted| wanted == tag) => {
            let (last, size) = (content.len() - 1, content.len());
            Answer { status: 206, body: content[from..].to_vec(), ..answer }
                .header("Content-Range", &format!("bytes {from}-{last}/{size}"))
        }
        _ => Answer { body: content.clone(), ..answer },
    }
}

/// Sends an answer; false if the connection is over after it.
fn send(mut stream: &TcpStream, request: &Request, answer: &Answer) -> std::io::Result<bool> {
    std::thread::sleep(answer.silent);
    if answer.reset {
        return Ok(false);
    }
    let mut head = format!("HTTP/1.1 {} Answer\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !answer.no_length {
        let length = answer.length.unwrap_or(answer.body.len() as u64);
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        let end = answer.cut.unwrap_or(usize::MAX).min(answer.body.len());
        for chunk in answer.body[..end].chunks(64 << 10) {
            stream.write_all(chunk)?;
            request.sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            std::thread::sleep(answer.pace);
        }
    }
    let whole = answer.cut.is_none() && !answer.no_length && answer.length.is_none();
    if !whole {
        // Lets the client read what was sent before it learns that there is no more.
        stream.shutdown(std::net::Shutdown::Write)?;
        let _ = stream.read(&mut [0; 1]);
    }
    Ok(whole)
}
