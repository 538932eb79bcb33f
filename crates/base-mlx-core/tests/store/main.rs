//! The store against a hub on the loopback interface, a stand-in for pip, and folders as other tools leave them.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

mod adopted;
mod asked;
mod child;
mod disk;
mod faults;
#[allow(dead_code, reason = "of the writer some is enough")]
#[path = "../support/gguf.rs"]
mod gguf;
mod hub;
mod kill;
mod network;
mod odd;
mod ollama;
mod pip;
mod ranges;
mod server;
mod waits;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base_mlx_core::store::{Catalogue, Host, Progress, Store, StoreOptions};
use server::{Reply, Repo, Request, Server};

/// A store in a folder of its own, with nothing of this machine in it.
struct World {
    folder: tempfile::TempDir,
    machine: Arc<Machine>,
    options: StoreOptions,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_owned();
        let machine = Arc::new(Machine::default());
        machine.free.store(u64::MAX, Ordering::SeqCst);
        let mut options =
            StoreOptions::from_vars(|name| (name == "HOME").then(|| home.clone().into_os_string()));
        options.home = home.join("ours");
        // Nobody listens there.
        options.hub_endpoint = "http://127.0.0.1:9".to_owned();
        options.python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/fake-python.sh");
        options.system_proxy = false;
        options.idle_timeout = Duration::from_secs(20);
        options.host = machine.clone();
        Self { folder, machine, options }
    }

    fn store(&self) -> Store {
        Store::open(self.options.clone())
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn catalogue(&mut self, models: serde_json::Value) {
        let document = serde_json::json!({ "models": models });
        self.options.catalogue = Catalogue::from_json(&document.to_string()).unwrap();
    }

    /// The files of a repository's cache folder, by their ends.
    fn blobs(&self, repo: &str) -> Vec<String> {
        let folder = format!("models--{}/blobs", repo.replace('/', "--"));
        names_in(&self.options.hub_cache.join(folder))
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A machine without time: a pause is written down and over.
#[derive(Default)]
struct Machine {
    free: AtomicU64,
    pauses: Mutex<Vec<Duration>>,
}

impl Host for Machine {
    fn free_bytes(&self, _: &Path) -> std::io::Result<u64> {
        Ok(self.free.load(Ordering::SeqCst))
    }

    fn pause(&self, time: Duration, _: &dyn Fn() -> bool) {
        self.pauses.lock().unwrap().push(time);
        std::thread::yield_now();
    }
}

/// Writes down what it is told.
#[derive(Default)]
struct Told {
    messages: Mutex<Vec<String>>,
    started: Mutex<Vec<(String, Option<u64>, u64)>>,
    advanced: AtomicU64,
    finished: AtomicU64,
}

impl Told {
    fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap().clone()
    }
}

impl Progress for Told {
    fn start(&self, file: &str, total_bytes: Option<u64>, already: u64) {
        self.started.lock().unwrap().push((file.to_owned(), total_bytes, already));
    }

    fn advance(&self, bytes: u64) {
        self.advanced.fetch_add(bytes, Ordering::SeqCst);
    }

    fn finish(&self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
    }

    fn message(&self, text: &str) {
        self.messages.lock().unwrap().push(text.to_owned());
    }
}

/// A hub and its storage for one repository. Each first asks the test whether it wants to answer itself.
struct Hub {
    hub: Server,
    storage: Server,
}

type Trick = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

impl Hub {
    fn good(repo: &Repo) -> Self {
        Self::tricky(repo, Box::new(|_| None), Box::new(|_| None))
    }

    fn tricky(repo: &Repo, at_hub: Trick, at_storage: Trick) -> Self {
        let (stored, listed) = (repo.clone(), repo.clone());
        let storage = Server::start(move |r| at_storage(r).unwrap_or_else(|| stored.stored(r)));
        let url = storage.url.clone();
        let hub = Server::start(move |r| at_hub(r).unwrap_or_else(|| listed.answer(r, &url)));
        Self { hub, storage }
    }

    fn world(&self) -> World {
        let mut world = World::new();
        world.options.hub_endpoint = self.hub.url.clone();
        world
    }
}
