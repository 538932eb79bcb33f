//! A hub and its storage on the loopback interface, which behave unless a test tells them otherwise.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha1::Sha1;
use sha2::{Digest, Sha256};

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    headers: HashMap<String, String>,
    /// How many requests with this method and path came before.
    pub(crate) before: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// What the length is said to be, if that is not the truth.
    pub(crate) claimed_len: Option<usize>,
    /// Hang up after so many bytes of the body.
    pub(crate) cut_at: Option<usize>,
    /// Do not hang up, but send nothing more.
    pub(crate) stall: bool,
    /// How the body is sent, if not in one go.
    pub(crate) pace: Option<Pace>,
    /// Nothing more is said, and the connection becomes one to this address.
    pub(crate) tunnel: Option<String>,
}

/// A body in chunks, with something done before each, which is told its length.
#[derive(Clone)]
pub(crate) struct Pace {
    pub(crate) chunk_bytes: usize,
    pub(crate) before: Arc<dyn Fn(usize) + Send + Sync>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            claimed_len: None,
            cut_at: None,
            stall: false,
            pace: None,
            tunnel: None,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn cut_at(mut self, bytes: usize) -> Self {
        self.cut_at = Some(bytes);
        self
    }

    /// The whole, or the range that was asked for.
    pub(crate) fn ranged(request: &Request, body: &[u8], etag: &str) -> Self {
        let quoted = format!("\"{etag}\"");
        let fits = request.header("if-range").is_none_or(|wanted| wanted == quoted);
        let range = request.header("range").filter(|_| fits).map(|range| {
            let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let end = to.parse().map_or(body.len(), |to: usize| (to + 1).min(body.len()));
            from.parse().unwrap()..end
        });
        let reply = match range {
            None => Reply::new(200, body),
            Some(range) if range.start >= body.len() => Reply::new(416, ""),
            Some(range) => Reply::new(206, &body[range.clone()]).with(
                "Content-Range",
                format!("bytes {}-{}/{}", range.start, range.end - 1, body.len()),
            ),
        };
        reply.with("ETag", quoted)
    }
}

pub(crate) struct Server {
    pub(crate) url: String,
    log: Arc<Mutex<Vec<Request>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer)
    }

    /// The same behind TLS.
    pub(crate) fn start_tls(
        tls: ServerConfig,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Some(Arc::new(tls)), answer)
    }

    fn start_with(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let stopping: Arc<AtomicBool> = Arc::default();
        let (seen, stop, answer) = (log.clone(), stopping.clone(), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, seen, answer) = (stream.unwrap(), seen.clone(), answer.clone());
                let tls = tls.clone();
                std::thread::spawn(move || match tls {
                    None => {
                        let tunnel = serve(&stream, &seen, &*answer);
                        tunnel.into_iter().for_each(|address| connect(&stream, &address));
                    }
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).unwrap();
                        serve(StreamOwned::new(connection, stream), &seen, &*answer);
                    }
                });
            }
        });
        Self { url, log, stopping, thread: Some(thread) }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, method: &str, path_end: &str) -> usize {
        let is = |r: &&Request| r.method == method && r.path.ends_with(path_end);
        self.requests().iter().filter(is).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.split_once("://").unwrap().1);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One request a connection. A client that is gone is no error. Returns where the connection is to lead from now on.
fn serve(
    mut stream: impl Read + Write,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> Option<String> {
    let request = read(&mut stream, log)?;
    let reply = answer(&request);
    if reply.tunnel.is_some() {
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
        return reply.tunnel;
    }
    let length = reply.claimed_len.unwrap_or(reply.body.len());
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    let has = |name: &str| reply.headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    if !has("content-length") && !has("transfer-encoding") {
        head += &format!("Content-Length: {length}\r\n");
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut body = &reply.body[..reply.cut_at.unwrap_or(reply.body.len()).min(reply.body.len())];
    if request.method == "HEAD" {
        body = &[];
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    match reply.pace {
        None => stream.write_all(body).ok()?,
        Some(Pace { chunk_bytes, before }) => body.chunks(chunk_bytes).try_for_each(|chunk| {
            before(chunk.len());
            stream.write_all(chunk).and_then(|()| stream.flush()).ok()
        })?,
    }
    stream.flush().ok()?;
    if reply.stall {
        let _ = stream.read(&mut [0]); // until the client gives up
    }
    None
}

/// What a proxy does once it is connected.
fn connect(client: &TcpStream, address: &str) {
    let Ok(hub) = TcpStream::connect(address) else { return };
    std::thread::scope(|scope| {
        for (mut from, mut to) in [(client, &hub), (&hub, client)] {
            scope.spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        }
    });
}

fn read(stream: impl Read, log: &Mutex<Vec<Request>>) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut log = log.lock().unwrap();
    let before = log.iter().filter(|r| r.method == method && r.path == path).count();
    let request = Request { method, path, headers, before };
    log.push(request.clone());
    Some(request)
}

/// A repository and what the hub says of it.
#[derive(Clone)]
pub(crate) struct Repo {
    pub(crate) id: &'static str,
    pub(crate) commit: String,
    pub(crate) files: Vec<File>,
}

#[derive(Clone)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    /// In the storage, not at the hub itself.
    pub(crate) large: bool,
}

impl File {
    pub(crate) fn etag(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        if self.large {
            return hex(&Sha256::digest(&self.content));
        }
        let mut sha1 = Sha1::new();
        sha1.update(format!("blob {}\0", self.content.len()));
        sha1.update(&self.content);
        hex(&sha1.finalize())
    }
}

impl Repo {
    /// `owner/tiny`: configuration, tokenizer, and 300,000 bytes of weights.
    pub(crate) fn tiny() -> Self {
        let repo = Self { id: "owner/tiny", commit: "c".repeat(40), files: Vec::new() };
        repo.small("config.json", "{\"model_type\":\"llama\"}")
            .small("tokenizer.json", "{}")
            .small("additional_chat_templates/tools.jinja", "{{ tools }}")
            .small("README.md", "# tiny")
            .large("model.safetensors", weights())
            .large("pytorch_model.bin", vec![7; 10])
    }

    pub(crate) fn small(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push(File { path: path.to_owned(), content: content.into(), large: false });
        self
    }

    pub(crate) fn large(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push(File { path: path.to_owned(), content: content.into(), large: true });
        self
    }

    pub(crate) fn file(&self, path: &str) -> &File {
        self.files.iter().find(|file| file.path == path).unwrap()
    }

    pub(crate) fn listing(&self) -> String {
        let sibling = |file: &File| {
            let mut sibling = serde_json::json!({
                "rfilename": file.path, "size": file.content.len(), "blobId": file.etag(),
            });
            if file.large {
                sibling["blobId"] = "0".repeat(40).into();
                sibling["lfs"] = serde_json::json!({
                    "sha256": file.etag(), "size": file.content.len(), "pointerSize": 130,
                });
            }
            sibling
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        serde_json::json!({ "sha": self.commit, "siblings": siblings }).to_string()
    }

    /// What a hub says. Large files are redirected to `storage`.
    pub(crate) fn answer(&self, request: &Request, storage: &str) -> Reply {
        if request.path.starts_with(&format!("/api/models/{}/revision/", self.id)) {
            return Reply::new(200, self.listing());
        }
        let prefix = format!("/{}/resolve/{}/", self.id, self.commit);
        let file = request.path.strip_prefix(&prefix);
        let Some(file) = file.and_then(|path| self.files.iter().find(|file| file.path == path))
        else {
            return Reply::new(404, "").with("X-Error-Code", "RepoNotFound");
        };
        let reply = if file.large {
            Reply::new(302, "")
                .with("Location", format!("{storage}/{}", file.etag()))
                .with("X-Linked-Etag", format!("\"{}\"", file.etag()))
                .with("X-Linked-Size", file.content.len())
        } else {
            Reply::ranged(request, &file.content, &file.etag())
        };
        reply.with("X-Repo-Commit", &self.commit)
    }

    /// What the storage gives. Its ETags are its own.
    pub(crate) fn stored(&self, request: &Request) -> Reply {
        let file = self.files.iter().find(|file| request.path == format!("/{}", file.etag()));
        match file {
            Some(file) => Reply::ranged(request, &file.content, "of-the-storage"),
            None => Reply::new(403, ""),
        }
    }
}

/// Bytes in which no two places look alike.
pub(crate) fn weights() -> Vec<u8> {
    (0..75_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}
