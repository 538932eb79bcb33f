use std::collections::HashMap;
use std::fs;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base_mlx_core::store::{Silent, StoreError};

use crate::server::{Pace, Repo, weights};
use crate::{Hub, World, child, names_in};

/// Two shards of many pieces, so that files and pieces are on their way at once.
fn repo() -> Repo {
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let (first, mut second) = (weights().repeat(4), weights().repeat(5));
    second.reverse();
    Repo { files: Vec::new(), ..Repo::tiny() }
        .small("config.json", "{}")
        .small("tokenizer.json", "{\"a\":1}")
        .small("model.safetensors.index.json", index)
        .large("model-1.safetensors", first)
        .large("model-2.safetensors", second)
}

/// What the storage has sent, and whom it kills at which number of bytes.
#[derive(Default)]
struct Sent {
    bytes: AtomicU64,
    kill_at: AtomicU64,
    victim: Mutex<Option<Child>>,
}

impl Sent {
    fn kill(&self) {
        if let Some(victim) = &mut *self.victim.lock().unwrap() {
            let _ = victim.kill();
        }
    }

    fn is_over(&self) -> bool {
        self.victim.lock().unwrap().as_mut().unwrap().try_wait().unwrap().is_some()
    }
}

fn slow_hub(repo: &Repo, sent: &Arc<Sent>) -> Hub {
    let (stored, sent) = (repo.clone(), sent.clone());
    let before: Arc<dyn Fn(usize) + Send + Sync> = Arc::new(move |bytes| {
        // So that the client keeps up, and what has been sent is there or nearly so.
        std::thread::sleep(Duration::from_millis(1));
        let now = sent.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
        if now >= sent.kill_at.load(Ordering::SeqCst) {
            sent.kill();
        }
    });
    let trick = move |request: &crate::server::Request| {
        let mut reply = stored.stored(request);
        reply.pace = Some(Pace { chunk_bytes: 32 << 10, before: before.clone() });
        Some(reply)
    };
    Hub::tricky(repo, Box::new(|_| None), Box::new(trick))
}

/// Whatever has a final name is whole, and whatever can be found is right.
fn assert_nothing_half(world: &World, repo: &Repo) {
    let by_etag: HashMap<_, _> = repo.files.iter().map(|file| (file.etag(), file)).collect();
    let folder = world.options.hub_cache.join("models--owner--tiny");
    for blob in world.blobs(repo.id) {
        if !blob.ends_with(".incomplete") && !blob.ends_with(".ranges") {
            let content = fs::read(folder.join("blobs").join(&blob)).unwrap();
            assert!(content == by_etag[&blob].content, "{blob} is not whole");
        }
    }
    let snapshot = folder.join("snapshots").join(&repo.commit);
    for name in names_in(&snapshot) {
        let content = fs::read(snapshot.join(&name)).unwrap();
        assert!(content == repo.file(&name).content, "{name} is not whole");
    }
    match world.store().find(repo.id) {
        Ok(model) => {
            assert_eq!(model.bytes, repo.files.iter().map(|f| f.content.len() as u64).sum::<u64>())
        }
        Err(error) => assert!(matches!(error, StoreError::NotFound { .. }), "{error}"),
    }
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_half_and_loses_little() {
    let repo = repo();
    let large = repo.files.iter().filter(|file| file.large);
    let total: u64 = large.map(|file| file.content.len() as u64).sum();
    let sent = Arc::new(Sent::default());
    let hub = slow_hub(&repo, &sent);
    let mut random = 7_u64;
    let (mut before_kills, mut after_kills, mut interrupted) = (0, 0, 0);
    for round in 0..20_u64 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut world = hub.world();
        (world.options.hub_connections, world.options.hub_range_bytes) = (6, 128 << 10);
        sent.bytes.store(0, Ordering::SeqCst);
        // The last few at the end, in the midst of hashing, renaming and linking.
        let kill_at = if round < 16 { (random >> 16) % total } else { u64::MAX };
        sent.kill_at.store(kill_at, Ordering::SeqCst);
        let child = child::pull(&world).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        *sent.victim.lock().unwrap() = Some(child.unwrap());
        if kill_at == u64::MAX {
            while sent.bytes.load(Ordering::SeqCst) < total && !sent.is_over() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis((round - 16) * 2));
            sent.kill();
        }
        while !sent.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let until_kill = sent.bytes.swap(0, Ordering::SeqCst).min(total);
        sent.kill_at.store(u64::MAX, Ordering::SeqCst);
        assert_nothing_half(&world, &repo);
        interrupted += u32::from(world.store().find(repo.id).is_err());

        world.store().pull("owner/tiny", &Silent).unwrap();
        assert_nothing_half(&world, &repo);
        assert_eq!(world.store().list().len(), 1);
        let mut etags: Vec<_> = repo.files.iter().map(|file| file.etag()).collect();
        etags.sort();
        assert_eq!(world.blobs(repo.id), etags, "no leftovers");
        before_kills += until_kill;
        after_kills += sent.bytes.load(Ordering::SeqCst);
    }
    assert!(interrupted >= 16, "{interrupted} pulls were interrupted");
    let kept = 20 * total - after_kills;
    assert!(kept > before_kills / 2, "{kept} of {before_kills} bytes were kept");
}
