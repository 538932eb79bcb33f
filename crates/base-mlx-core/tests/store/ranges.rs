//! A large file comes in pieces, several at once, whatever the hub does meanwhile.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use base_mlx_core::store::{Silent, StoreError};

use crate::server::{Pace, Reply, Repo, Request, weights};
use crate::{Hub, Told, World};

/// Ten pieces of the 300,000 bytes of weights.
const PIECE: usize = 30_000;

fn world(hub: &Hub) -> World {
    let mut world = hub.world();
    world.options.hub_range_bytes = PIECE as u64;
    world
}

fn storage(answer: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> (Hub, Repo) {
    let repo = Repo::tiny();
    (Hub::tricky(&repo, Box::new(|_| None), Box::new(answer)), repo)
}

fn pull(world: &World) -> Result<Vec<u8>, StoreError> {
    let model = world.store().pull("owner/tiny", &Silent)?;
    Ok(fs::read(model.path.join("model.safetensors")).unwrap())
}

fn ranges(hub: &Hub) -> Vec<String> {
    let range = |r: Request| r.header("range").unwrap_or("all").to_owned();
    hub.storage.requests().into_iter().map(range).collect()
}

/// Deals out numbers, as good as random, the same each time.
fn dice(seed: u64) -> impl Fn() -> usize + Send + Sync {
    let rolls = AtomicUsize::new(0);
    move || {
        let roll = rolls.fetch_add(1, Ordering::SeqCst) as u64 + seed * 1000;
        let mixed = (roll ^ roll >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as usize
    }
}

fn names(world: &World) -> Vec<String> {
    world.blobs("owner/tiny").into_iter().filter(|name| name.contains('.')).collect()
}

#[test]
fn pieces_come_at_once_and_no_more_than_are_allowed() {
    // Nobody is answered before three ask, except the first, who is asked whether there are pieces.
    let (repo, barrier) = (Repo::tiny(), Barrier::new(3));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, highest) = (now.clone(), most.clone());
    let (hub, _) = storage(move |r| {
        highest.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        if !r.header("range").unwrap().starts_with("bytes=0-") {
            barrier.wait();
        }
        inside.fetch_sub(1, Ordering::SeqCst);
        Some(repo.stored(r))
    });
    let mut world = world(&hub);
    world.options.hub_connections = 3;
    let told = Told::default();
    let model = world.store().pull("owner/tiny", &told).unwrap();
    assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), weights());
    assert_eq!(most.load(Ordering::SeqCst), 3);
    let asked: HashSet<_> = ranges(&hub).into_iter().collect();
    let piece = |n: usize| format!("bytes={}-{}", n * PIECE, (n + 1) * PIECE - 1);
    assert_eq!(asked, (0..10).map(piece).collect());
    assert_eq!(ranges(&hub).len(), 10);
    assert!(names(&world).is_empty(), "{:?}", names(&world));
    // One beginning, one end, and every byte once.
    let started = told.started.lock().unwrap().clone();
    assert_eq!(started.len(), 1, "{started:?}");
    let (what, total, already) = &started[0];
    assert_eq!((what.as_str(), *already), ("owner/tiny", 0));
    assert_eq!(*total, Some(told.advanced.load(Ordering::SeqCst)));
    assert_eq!(told.finished.load(Ordering::SeqCst), 1);
}

#[test]
fn several_files_come_at_once() {
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let repo = Repo { files: Vec::new(), ..Repo::tiny() }
        .small("config.json", "{}")
        .small("tokenizer.json", "[]")
        .small("model.safetensors.index.json", index)
        .large("model-1.safetensors", *b"one")
        .large("model-2.safetensors", *b"two")
        .large("model-3.safetensors", *b"of no use");
    let (stored, barrier) = (repo.clone(), Barrier::new(2));
    let both = move |r: &Request| {
        barrier.wait();
        Some(stored.stored(r))
    };
    let hub = Hub::tricky(&repo, Box::new(|_| None), Box::new(both));
    let told = Told::default();
    hub.world().store().pull("owner/tiny", &told).unwrap();
    assert_eq!(hub.storage.requests().len(), 2);
    // What the index does not name was counted until it was here.
    let totals: Vec<_> = told.started.lock().unwrap().iter().map(|(_, total, _)| *total).collect();
    let all: u64 = repo.files.iter().map(|file| file.content.len() as u64).sum();
    assert_eq!(totals, [Some(all), Some(all - 9)]);
    assert_eq!(told.advanced.load(Ordering::SeqCst), all - 9);
}

#[test]
fn pieces_that_are_here_are_not_fetched_again() {
    let repo = Repo::tiny();
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let (hub, _) = storage(move |r| {
        let range = r.header("range").unwrap();
        let start = range.trim_start_matches("bytes=").split('-').next().unwrap();
        let from_second_half = start.parse::<usize>().unwrap() >= 150_000;
        let broken = is_broken.load(Ordering::SeqCst) && from_second_half;
        Some(if broken { repo.stored(r).cut_at(1000) } else { repo.stored(r) })
    });
    let world = world(&hub);
    let error = pull(&world).unwrap_err();
    assert!(matches!(error, StoreError::Http { .. }), "{error}");
    let [pieces] = names(&world).try_into().unwrap();
    assert!(pieces.ends_with(".ranges"), "{pieces}");
    assert!(world.store().list().is_empty());

    broken.store(false, Ordering::SeqCst);
    let before = hub.storage.requests().len();
    let told = Told::default();
    let model = world.store().pull("owner/tiny", &told).unwrap();
    assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), weights());
    let asked = ranges(&hub).split_off(before);
    assert!(!asked.contains(&"bytes=0-29999".to_owned()), "{asked:?}");
    assert!(asked.iter().any(|range| !range.ends_with("0000-")), "{asked:?}");
    let (_, total, already) = told.started.lock().unwrap()[0].clone();
    assert!(already >= 30_000);
    assert_eq!(already + told.advanced.load(Ordering::SeqCst), total.unwrap());
    assert!(names(&world).is_empty(), "{:?}", names(&world));
}

#[test]
fn a_beginning_that_another_tool_left_is_used() {
    let (hub, repo) = storage(|_| None);
    let world = world(&hub);
    let etag = repo.file("model.safetensors").etag();
    let incomplete = format!(".cache/huggingface/hub/models--owner--tiny/blobs/{etag}.incomplete");
    world.write(&incomplete, &weights()[..95_000]);
    assert_eq!(pull(&world).unwrap(), weights());
    let asked = ranges(&hub);
    assert!(asked.contains(&"bytes=95000-119999".to_owned()), "{asked:?}");
    assert_eq!(asked.len(), 7);
    assert!(names(&world).is_empty());
}

#[test]
fn without_ranges_it_comes_as_a_whole() {
    for status in [200, 416] {
        let (hub, _) = storage(move |r| {
            let whole = Reply::new(200, weights());
            Some(if r.header("range").is_some() && status == 416 {
                Reply::new(416, "")
            } else {
                whole
            })
        });
        assert_eq!(pull(&world(&hub)).unwrap(), weights());
        assert_eq!(ranges(&hub), ["bytes=0-29999", "all"]);
    }
    // Said beforehand.
    let repo = Repo::tiny().small("vocab.json", weights());
    let said = repo.clone();
    let hub = Hub::tricky(
        &repo,
        Box::new(move |r| {
            Some(said.answer(r, "").with("Accept-Ranges", "none"))
                .filter(|_| r.path.ends_with("vocab.json"))
        }),
        Box::new(|_| None),
    );
    assert_eq!(pull(&world(&hub)).unwrap(), weights());
    let requests = hub.hub.requests().into_iter().filter(|r| r.path.ends_with("vocab.json"));
    assert!(requests.into_iter().all(|r| r.header("range").is_none()));
}

#[test]
fn one_answer_without_ranges_among_many_costs_nothing() {
    let odd = AtomicUsize::new(0);
    let (hub, _) = storage(move |_| {
        (odd.fetch_add(1, Ordering::SeqCst) == 4).then(|| Reply::new(200, weights()))
    });
    assert_eq!(pull(&world(&hub)).unwrap(), weights());
    assert_eq!(ranges(&hub).len(), 11);
    assert!(!ranges(&hub).contains(&"all".to_owned()));
}

#[test]
fn connections_that_drop_anywhere_are_taken_up_again() {
    for seed in 0..8 {
        let (repo, dice) = (Repo::tiny(), dice(seed));
        let (hub, _) = storage(move |r| {
            let reply = repo.stored(r);
            Some(match dice() % 3 {
                0 => reply.cut_at(dice() % PIECE),
                1 => reply.cut_at(PIECE / 2 + dice() % PIECE),
                _ => reply,
            })
        });
        let mut world = world(&hub);
        world.options.hub_connections = 1 + seed as usize;
        // Given up after too many in a row, it goes on with the next pull.
        let pulled = (0..20).find_map(|_| pull(&world).ok());
        assert!(pulled.unwrap() == weights(), "seed {seed}");
        assert!(names(&world).is_empty());
    }
}

#[test]
fn wrong_bytes_in_one_piece_are_found() {
    let is_first = AtomicBool::new(true);
    let (hub, _) = storage(move |r| {
        let is_third = r.header("range") == Some("bytes=60000-89999");
        (is_third && is_first.swap(false, Ordering::SeqCst)).then(|| {
            Reply::new(206, vec![9; PIECE]).with("Content-Range", "bytes 60000-89999/300000")
        })
    });
    let world = world(&hub);
    let told = Told::default();
    let model = world.store().pull("owner/tiny", &told).unwrap();
    assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), weights());
    assert!(told.messages()[0].contains("its SHA-256"), "{:?}", told.messages());
    assert_eq!(ranges(&hub).len(), 20);
    // What was counted in vain was taken back.
    let last = told.started.lock().unwrap().last().unwrap().clone();
    assert!(last.2 < 300, "{last:?}");
}

#[test]
fn parts_of_something_else_are_refused() {
    let ranges = [
        "bytes 0-29999/300001",
        "bytes 1-30000/300000",
        "bytes 0-30000/300000",
        "bytes 0-299999/300000",
        "bytes */300000",
        "",
    ];
    for range in ranges {
        let (hub, repo) = storage(move |_| {
            Some(Reply::new(206, &weights()[..PIECE]).with("Content-Range", range))
        });
        let world = world(&hub);
        let error = pull(&world).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { what: "its range", .. }), "{range}: {error}");
        assert!(!world.blobs("owner/tiny").contains(&repo.file("model.safetensors").etag()));
        assert!(names(&world).is_empty(), "{:?}", names(&world));
    }
}

#[test]
fn a_part_that_is_longer_or_shorter_than_it_says() {
    let repo = Repo::tiny();
    let (hub, _) = storage(move |r| {
        let mut reply = repo.stored(r);
        reply.body.extend(b"!");
        Some(reply)
    });
    let error = pull(&world(&hub)).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { what: "a part", .. }), "{error}");

    // Shorter, as if that were all: the rest is asked for.
    let repo = Repo::tiny();
    let (hub, _) = storage(move |r| {
        let mut reply = repo.stored(r);
        reply.body.truncate(PIECE / 2);
        Some(reply)
    });
    assert_eq!(pull(&world(&hub)).unwrap(), weights());
    assert!(ranges(&hub).contains(&"bytes=15000-29999".to_owned()));
}

#[test]
fn a_hub_that_lies_about_a_files_length_is_not_believed() {
    for (size, range_bytes) in [
        ("299999", PIECE as u64),
        ("300001", PIECE as u64),
        ("299999", u64::MAX),
        ("300001", u64::MAX),
    ] {
        let repo = Repo::tiny();
        let etag = repo.file("model.safetensors").etag();
        let hub = Hub::tricky(
            &repo.clone(),
            Box::new(move |r| {
                if r.path.starts_with("/api") {
                    return Some(Reply::new(200, repo.listing().replace("300000", size)));
                }
                if r.path.trim_start_matches('/') == repo.file("model.safetensors").etag() {
                    return Some(repo.stored(r));
                }
                let mut reply = repo.answer(r, "");
                let linked = reply.headers.iter_mut().find(|(name, _)| name == "X-Linked-Size");
                linked?.1 = size.to_owned();
                Some(reply)
            }),
            Box::new(|_| None),
        );
        let mut world = world(&hub);
        world.options.hub_range_bytes = range_bytes;
        let error = pull(&world).unwrap_err();
        let is = matches!(error, StoreError::Corrupt { .. } | StoreError::Http { .. });
        assert!(is, "{size}, {range_bytes}: {error}");
        assert!(!world.blobs("owner/tiny").contains(&etag));
        assert!(world.store().list().is_empty());
    }
}

#[test]
fn a_file_that_changes_in_the_midst_is_never_mixed() {
    // From the fourth part on, the hub speaks of another content, under another ETag.
    let mut tomorrow = Repo::tiny();
    let position = tomorrow.files.iter().position(|f| f.path == "model.safetensors").unwrap();
    tomorrow.files[position].content.reverse();
    let (other, stored) = (tomorrow.clone(), format!("/{}", tomorrow.files[position].etag()));
    let hub = Hub::tricky(
        &Repo::tiny(),
        Box::new(move |r| {
            let is_part = r.method == "GET" && r.path.ends_with("model.safetensors");
            match is_part && r.before >= 3 {
                true => Some(other.answer(r, "")),
                false => (r.path == stored).then(|| other.stored(r)),
            }
        }),
        Box::new(|_| None),
    );
    let world = world(&hub);
    let error = pull(&world).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { what: "its ETag", .. }), "{error}");
    for repo in [Repo::tiny(), tomorrow] {
        assert!(!world.blobs("owner/tiny").contains(&repo.files[position].etag()));
    }
    assert!(names(&world).is_empty(), "{:?}", names(&world));
    assert!(world.store().list().is_empty());
}

#[test]
fn a_storage_that_is_busy_is_waited_for() {
    let busy = AtomicUsize::new(0);
    let (hub, _) = storage(move |_| {
        let count = busy.fetch_add(1, Ordering::SeqCst);
        (count % 3 == 1).then(|| Reply::new(429, "").with("Retry-After", 3))
    });
    let world = world(&hub);
    assert_eq!(pull(&world).unwrap(), weights());
    let pauses = world.machine.pauses.lock().unwrap().clone();
    assert!(!pauses.is_empty() && pauses.iter().all(|p| p.as_secs() == 3), "{pauses:?}");
}

#[test]
fn a_byte_now_and_then_is_silence() {
    for range_bytes in [PIECE as u64, u64::MAX] {
        let (hub, repo) = storage(|r| {
            let mut reply = Repo::tiny().stored(r);
            let before = Arc::new(|_| std::thread::sleep(Duration::from_millis(20)));
            reply.pace = Some(Pace { chunk_bytes: 1, before });
            Some(reply)
        });
        let mut world = world(&hub);
        world.options.hub_range_bytes = range_bytes;
        world.options.idle_timeout = Duration::from_millis(100);
        let error = pull(&world).unwrap_err().to_string();
        assert!(error.contains("bytes came in 0.1 s"), "{error}");
        assert!(!world.blobs("owner/tiny").contains(&repo.file("model.safetensors").etag()));
    }
}

#[test]
fn one_failure_stops_the_other_files() {
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let repo = Repo { files: Vec::new(), ..Repo::tiny() }
        .small("config.json", "{}")
        .small("tokenizer.json", "[]")
        .small("model.safetensors.index.json", index)
        .large("model-1.safetensors", *b"one")
        .large("model-2.safetensors", weights());
    // The second never ends by itself; the first fails.
    let second = repo.file("model-2.safetensors").etag();
    let stored = repo.clone();
    let hub = Hub::tricky(
        &repo,
        Box::new(|r| r.path.ends_with("model-1.safetensors").then(|| Reply::new(403, ""))),
        Box::new(move |r| {
            let mut reply = stored.stored(r);
            let before = Arc::new(|_| std::thread::sleep(Duration::from_millis(1)));
            reply.pace = Some(Pace { chunk_bytes: 16, before });
            r.path.ends_with(&second).then_some(reply)
        }),
    );
    let mut world = hub.world();
    for range_bytes in [PIECE as u64, u64::MAX] {
        world.options.hub_range_bytes = range_bytes;
        let error = world.store().pull("owner/tiny", &Silent).unwrap_err();
        assert!(matches!(error, StoreError::Denied { status: 403, .. }), "{error}");
    }
}
