//! A pull that has failed waits for nothing any more, with the time of a real machine.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base_mlx_core::store::{Progress, StoreError, System};

use crate::server::{Reply, Repo, Request};
use crate::{Hub, World};

fn two_files() -> Repo {
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    Repo { files: Vec::new(), ..Repo::tiny() }
        .small("config.json", "{}")
        .small("tokenizer.json", "[]")
        .small("model.safetensors.index.json", index)
        .large("model-1.safetensors", *b"one")
        .large("model-2.safetensors", *b"two")
}

/// The error of a pull that must not take as long as what it could wait for.
fn failure(world: World, progress: impl Progress + 'static) -> StoreError {
    let (sender, done) = channel();
    std::thread::spawn(move || sender.send(world.store().pull("owner/tiny", &progress).err()));
    done.recv_timeout(Duration::from_secs(40)).expect("it still waits").expect("a file failed")
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

/// Raises a flag when it is told of a wait.
struct Waits(Arc<AtomicBool>, Arc<Mutex<Vec<String>>>);

impl Progress for Waits {
    fn start(&self, _: &str, _: Option<u64>, _: u64) {}

    fn advance(&self, _: u64) {}

    fn finish(&self) {}

    fn message(&self, text: &str) {
        self.1.lock().unwrap().push(text.to_owned());
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn one_failure_ends_the_wait_for_anothers_lock() {
    let (repo, waits) = (two_files(), Arc::new(AtomicBool::new(false)));
    let seen = waits.clone();
    let at_hub = move |r: &Request| {
        let is_second = r.path.ends_with("model-2.safetensors");
        is_second.then(|| {
            wait_for(&seen);
            Reply::new(403, "")
        })
    };
    let hub = Hub::tricky(&repo, Box::new(at_hub), Box::new(|_| None));
    let world = hub.world();
    let etag = repo.file("model-1.safetensors").etag();
    let lock =
        world.options.hub_cache.join(".locks/models--owner--tiny").join(format!("{etag}.lock"));
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = File::create(lock).unwrap();
    held.lock().unwrap();
    let told = Arc::default();
    let error = failure(world, Waits(waits, Arc::clone(&told)));
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    assert_eq!(*told.lock().unwrap(), ["waiting for another pull of model-1.safetensors"]);
    drop(held);
}

#[test]
fn one_failure_ends_the_pause_of_another_file() {
    let (repo, busy) = (two_files(), Arc::new(AtomicBool::new(false)));
    let at_hub = move |r: &Request| match &r.path {
        path if path.ends_with("model-1.safetensors") => {
            busy.store(true, Ordering::SeqCst);
            Some(Reply::new(429, "").with("Retry-After", 60))
        }
        path if path.ends_with("model-2.safetensors") => {
            wait_for(&busy);
            Some(Reply::new(403, ""))
        }
        _ => None,
    };
    let hub = Hub::tricky(&repo, Box::new(at_hub), Box::new(|_| None));
    let mut world = hub.world();
    world.options.host = Arc::new(System);
    let error = failure(world, Waits(Arc::default(), Arc::default()));
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
}

#[test]
fn one_piece_that_fails_ends_the_pause_of_another() {
    let (repo, busy) = (Repo::tiny(), Arc::new(AtomicBool::new(false)));
    let at_hub = move |r: &Request| match r.header("range").unwrap_or_default() {
        range if range.starts_with("bytes=100000-") => {
            busy.store(true, Ordering::SeqCst);
            Some(Reply::new(429, "").with("Retry-After", 60))
        }
        range if range.starts_with("bytes=200000-") => {
            wait_for(&busy);
            Some(Reply::new(403, ""))
        }
        _ => None,
    };
    let hub = Hub::tricky(&repo, Box::new(at_hub), Box::new(|_| None));
    let mut world = hub.world();
    world.options.hub_range_bytes = 100_000;
    world.options.host = Arc::new(System);
    let error = failure(world, Waits(Arc::default(), Arc::default()));
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
}
