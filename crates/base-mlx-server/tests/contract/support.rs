//! A server on a port of its own, and a client that sees every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base_mlx_core::engine::{Device, DeviceKind, DeviceOptions};
use base_mlx_core::store::{Store, StoreOptions};
use base_mlx_core::text::Text;
use base_mlx_core::weights::Checkpoint;
use base_mlx_server::{ServeError, Server, ServerOptions};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::test_models::{test_model, test_models};

pub(crate) const MODEL: &str = "smollm2";

/// The server that most tests share.
pub(crate) static SERVER: LazyLock<TestServer> = LazyLock::new(|| TestServer::start(|_| {}));

/// The shared model's tokenizer, to name tokens by number.
pub(crate) static TEXT: LazyLock<Text> = LazyLock::new(|| {
    let path = test_model("smollm2.gguf");
    Text::load(&Checkpoint::open(&path).unwrap()).unwrap()
});

/// One for all servers, as compute threads of several devices would fight.
static DEVICE: LazyLock<Device> = LazyLock::new(|| {
    // The contract's bits are the CPU's.
    let kind = DeviceKind::Cpu;
    Device::start(DeviceOptions { kind, ..DeviceOptions::default() }).unwrap()
});

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    shutdown: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl TestServer {
    pub(crate) fn start(change: impl FnOnce(&mut ServerOptions)) -> Self {
        Self::with_models(&test_models(), change)
    }

    pub(crate) fn with_models(models: &Path, change: impl FnOnce(&mut ServerOptions)) -> Self {
        Self::on_device(DEVICE.clone(), models, change)
    }

    /// With so much memory for its models.
    pub(crate) fn with_memory(
        bytes: usize,
        models: &Path,
        change: impl FnOnce(&mut ServerOptions),
    ) -> Self {
        let memory_bytes = Some(bytes);
        let kind = DeviceKind::Cpu;
        let options = DeviceOptions { kind, memory_bytes, ..DeviceOptions::default() };
        Self::on_device(Device::start(options).unwrap(), models, change)
    }

    fn on_device(device: Device, models: &Path, change: impl FnOnce(&mut ServerOptions)) -> Self {
        let mut options = ServerOptions { port: 0, ..ServerOptions::default() };
        change(&mut options);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(Server::bind(options, store(models), device)).unwrap();
        let address = server.address();
        let (shutdown, asked) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let asked = async { asked.await.unwrap_or(()) };
            runtime.block_on(server.run(asked)).unwrap();
            runtime.shutdown_background();
        });
        Self { address, shutdown: Mutex::new(Some(shutdown)), thread: Mutex::new(Some(thread)) }
    }

    /// What SIGTERM does.
    pub(crate) fn begin_shutdown(&self) {
        let _ = self.shutdown.lock().unwrap().take().unwrap().send(());
    }

    pub(crate) fn wait_until_gone(&self) {
        self.thread.lock().unwrap().take().unwrap().join().unwrap();
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(
            "POST",
            path,
            &[("Content-Type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    pub(crate) fn chat(&self, body: Value) -> Reply {
        self.post("/v1/chat/completions", &with_model(body))
    }

    pub(crate) fn complete(&self, body: Value) -> Reply {
        self.post("/v1/completions", &with_model(body))
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.open(method, path, headers, body).finish()
    }

    /// Sends a request and reads the answer's head.
    pub(crate) fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all((head + "Connection: close\r\n\r\n").as_bytes()).unwrap();
        connection.write_all(body).unwrap();
        Answer::read(connection, method == "HEAD")
    }

    /// Begins a chat request and returns when the server has given it a place and waits for its body.
    pub(crate) fn announce_chat(&self, body: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\
             Expect: 100-continue\r\n\r\n",
            self.address,
            body.len()
        );
        connection.write_all(head.as_bytes()).unwrap();
        let mut leave = [0; CONTINUE.len()];
        connection.read_exact(&mut leave).unwrap();
        assert_eq!(leave, *CONTINUE);
        connection
    }

    pub(crate) fn open_chat(&self, body: Value) -> Answer {
        let body = with_model(body).to_string();
        let headers = [("Content-Type", "application/json")];
        self.open("POST", "/v1/chat/completions", &headers, body.as_bytes())
    }
}

/// An answer whose body is still to be read.
pub(crate) struct Answer {
    reader: BufReader<TcpStream>,
    head: Reply,
    without_body: bool,
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn read(connection: TcpStream, without_body: bool) -> Self {
        let mut reader = BufReader::new(connection);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}"));
        let mut head = Reply { status: status.parse().unwrap(), ..Reply::default() };
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            head.headers.push((name.to_lowercase(), value.to_owned()));
        }
        Self { reader, head, without_body }
    }

    /// The next piece of a chunked body, empty at its end.
    pub(crate) fn piece(&mut self) -> Vec<u8> {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut piece = vec![0; length + 2];
        self.reader.read_exact(&mut piece).unwrap();
        piece.truncate(length);
        piece
    }

    pub(crate) fn finish(mut self) -> Reply {
        let mut reply = std::mem::take(&mut self.head);
        if self.without_body {
            self.reader.read_to_end(&mut reply.body).unwrap();
        } else if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let piece = self.piece();
                if piece.is_empty() {
                    break;
                }
                reply.body.extend(piece);
            }
        } else if let Some(length) = reply.header("content-length") {
            reply.body = vec![0; length.parse().unwrap()];
            self.reader.read_exact(&mut reply.body).unwrap();
        } else {
            self.reader.read_to_end(&mut reply.body).unwrap();
        }
        reply
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The answer's JSON, which must be a success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The error of the envelope, which must be whole.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        let error = &body["error"];
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        error.clone()
    }

    /// What the `data:` lines of a stream say, the last of which must be `[DONE]`.
    #[track_caller]
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        let mut data = self.data();
        assert_eq!(data.pop().as_deref(), Some("[DONE]"), "{}", self.text());
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    #[track_caller]
    pub(crate) fn data(&self) -> Vec<String> {
        let frames = self.text().split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
        frames.map(|frame| frame.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}

pub(crate) fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

/// A greedy request for a short answer.
pub(crate) fn capital() -> Value {
    json!({
        "messages": user("What is the capital of France? Answer in one word."),
        "temperature": 0,
        "max_tokens": 12,
    })
}

/// A request with some fields more, or others.
pub(crate) fn with(mut body: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The text of a choice, of a whole answer.
#[track_caller]
pub(crate) fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// The text of a choice, of a stream.
pub(crate) fn streamed(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.map(|choice| {
        let text = choice["delta"].get("content").or(choice.get("text"));
        text.and_then(Value::as_str).unwrap_or_default().to_owned()
    })
    .collect()
}

pub(crate) async fn bind(port: u16) -> Result<Server, ServeError> {
    let options = ServerOptions { port, ..ServerOptions::default() };
    Server::bind(options, store(&test_models()), DEVICE.clone()).await
}

/// Without what differs from answer to answer.
pub(crate) fn redacted(mut answer: Value) -> Value {
    for key in ["id", "created", "system_fingerprint"] {
        assert!(!answer[key].is_null(), "{key} in {answer}");
        answer[key] = json!("[redacted]");
    }
    if let Some(cached) = answer.pointer_mut("/usage/prompt_tokens_details/cached_tokens") {
        assert!(cached.is_u64(), "{cached}");
        *cached = json!("[redacted]");
    }
    answer
}

/// Knows that folder of models and nothing else of this machine.
fn store(models: &Path) -> Store {
    let nowhere = models.join("nowhere");
    Store::open(StoreOptions::from_vars(|name| match name {
        "BASE_MLX_MODELS_DIR" => Some(models.as_os_str().to_owned()),
        "HOME" | "BASE_MLX_HOME" | "HF_HOME" => Some(nowhere.clone().into_os_string()),
        _ => None,
    }))
}

pub(crate) fn with_model(mut body: Value) -> Value {
    if body.get("model").is_none() {
        body["model"] = MODEL.into();
    }
    body
}

/// Asks again and again until the answer is the wanted one.
#[track_caller]
pub(crate) fn until(mut ask: impl FnMut() -> Reply, wanted: impl Fn(&Reply) -> bool) -> Reply {
    let begun = Instant::now();
    loop {
        let reply = ask();
        if wanted(&reply) {
            return reply;
        }
        assert!(begun.elapsed() < PATIENCE, "still {}: {}", reply.status, reply.text());
    }
}

const CONTINUE: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Far more than any answer takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(120);
