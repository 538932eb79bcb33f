use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base_mlx_core::store::{Silent, StoreError};

use crate::server::{Reply, Repo, Request, Server, weights};
use crate::{Hub, Told, World};

fn pull(world: &World) -> Result<Vec<u8>, StoreError> {
    let model = world.store().pull("owner/tiny", &Silent)?;
    Ok(fs::read(model.path.join("model.safetensors")).unwrap())
}

/// Nothing may be found, and nothing but pieces may lie where the weights would.
fn assert_nothing_half(world: &World, repo: &Repo) {
    assert!(world.store().list().is_empty());
    assert!(!world.blobs(repo.id).contains(&repo.file("model.safetensors").etag()));
}

fn storage(answer: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> (Hub, Repo) {
    let repo = Repo::tiny();
    (Hub::tricky(&repo, Box::new(|_| None), Box::new(answer)), repo)
}

#[test]
fn a_connection_that_drops_is_taken_up_again() {
    let repo = Repo::tiny();
    let stored = repo.clone();
    let (hub, _) = storage(move |r| {
        let dropped = r.before < 3;
        dropped.then(|| stored.stored(r).cut_at(90_000))
    });
    let world = hub.world();
    assert_eq!(pull(&world).unwrap(), weights());
    let requests = hub.storage.requests();
    let ranges: Vec<_> = requests.iter().map(|r| r.header("range").unwrap_or("all")).collect();
    assert_eq!(ranges, ["all", "bytes=90000-", "bytes=180000-", "bytes=270000-"]);
    let pauses = world.machine.pauses.lock().unwrap().clone();
    assert_eq!(pauses, [500, 1000, 2000].map(Duration::from_millis));
}

#[test]
fn a_connection_that_always_drops_is_given_up() {
    let repo = Repo::tiny();
    let stored = repo.clone();
    let (hub, _) = storage(move |r| Some(stored.stored(r).cut_at(10)));
    let world = hub.world();
    let error = pull(&world).unwrap_err();
    assert!(matches!(error, StoreError::Http { .. }), "{error}");
    assert_eq!(hub.storage.requests().len(), 5);
    assert_nothing_half(&world, &repo);
}

#[test]
fn a_body_that_ends_early_is_no_file() {
    // The length is that of what is sent, so that the transfer itself looks whole.
    let (hub, repo) = storage(|_| Some(Reply::new(200, &weights()[..1000])));
    let world = hub.world();
    let error = pull(&world).unwrap_err().to_string();
    assert!(error.contains("model.safetensors ends after 1000 of 300000 bytes"), "{error}");
    assert_nothing_half(&world, &repo);
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let announced = |_: &Request| Some(Reply::new(200, [weights(), vec![0]].concat()));
    let chunked = |_: &Request| {
        let mut body = format!("{:x}\r\n", 300_001).into_bytes();
        body.extend(weights());
        body.extend(b"!\r\n0\r\n\r\n");
        Some(Reply::new(200, body).with("Transfer-Encoding", "chunked"))
    };
    for (hub, repo) in [storage(announced), storage(chunked)] {
        let world = hub.world();
        let error = pull(&world).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { what: "its size", .. }), "{error}");
        assert_nothing_half(&world, &repo);
    }
}

#[test]
fn a_length_that_is_a_lie_is_a_dropped_connection() {
    let (hub, _) = storage(|r| {
        let mut reply = Reply::new(200, weights()).cut_at(5000);
        reply.claimed_len = Some(300_000);
        (r.before == 0).then_some(reply)
    });
    assert_eq!(pull(&hub.world()).unwrap(), weights());
}

#[test]
fn wrong_bytes_are_fetched_again_once_and_then_refused() {
    let wrong = || Reply::new(200, vec![1; 300_000]);
    let (hub, _) = storage(move |r| (r.before == 0).then(wrong));
    let world = hub.world();
    let told = Told::default();
    let model = world.store().pull("owner/tiny", &told).unwrap();
    assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), weights());
    assert!(told.messages()[0].contains("trying again"), "{:?}", told.messages());

    let (hub, repo) = storage(move |_| Some(wrong()));
    let world = hub.world();
    let error = pull(&world).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { what: "its SHA-256", .. }), "{error}");
    assert_eq!(hub.storage.requests().len(), 2);
    assert_nothing_half(&world, &repo);
    assert!(!world.blobs(repo.id).iter().any(|blob| blob.ends_with(".incomplete")));
}

#[test]
fn a_piece_that_does_not_fit_is_thrown_away() {
    let (hub, repo) = storage(|_| None);
    let world = hub.world();
    let etag = repo.file("model.safetensors").etag();
    let blobs = world.options.hub_cache.join("models--owner--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{etag}.incomplete")), vec![9; 1000]).unwrap();
    assert_eq!(pull(&world).unwrap(), weights());
    let requests = hub.storage.requests();
    let ranges: Vec<_> = requests.iter().map(|r| r.header("range")).collect();
    assert_eq!(ranges, [Some("bytes=1000-"), None]);
}

#[test]
fn a_piece_that_is_too_long_is_thrown_away() {
    let (hub, repo) = storage(|_| None);
    let world = hub.world();
    let etag = repo.file("model.safetensors").etag();
    let blobs = world.options.hub_cache.join("models--owner--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{etag}.incomplete")), vec![9; 300_001]).unwrap();
    assert_eq!(pull(&world).unwrap(), weights());
    assert_eq!(hub.storage.requests()[0].header("range"), None);
}

#[test]
fn a_rest_from_the_wrong_place_is_refused() {
    let repo = Repo::tiny();
    let stored = repo.clone();
    let (hub, _) = storage(move |r| match r.header("range") {
        None => Some(stored.stored(r).cut_at(1000)),
        Some(_) => Some(
            Reply::new(206, &weights()[500..]).with("Content-Range", "bytes 500-299999/300000"),
        ),
    });
    let world = hub.world();
    let error = pull(&world).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { what: "its range", .. }), "{error}");
    assert_nothing_half(&world, &repo);
}

#[test]
fn a_storage_that_ignores_ranges_starts_from_the_beginning() {
    let (hub, _) = storage(|r| {
        let reply = Reply::new(200, weights());
        Some(if r.before == 0 { reply.cut_at(1000) } else { reply })
    });
    assert_eq!(pull(&hub.world()).unwrap(), weights());
}

#[test]
fn a_file_that_changes_between_two_tries_is_never_mixed() {
    // The first half is of yesterday's content; then the hub has another one under another ETag.
    let today = Repo::tiny();
    let mut yesterday = today.clone();
    let position = yesterday.files.iter().position(|f| f.path == "model.safetensors").unwrap();
    yesterday.files[position].content.reverse();
    let (old, old_etag) = (yesterday.clone(), yesterday.files[position].etag());
    let hub = Hub::tricky(
        &today,
        Box::new(move |r| {
            let is_weights = r.path.ends_with("model.safetensors");
            let is_old = r.path.starts_with("/api") || (is_weights && r.before == 0);
            is_old.then(|| {
                let mut reply = old.answer(r, "http://elsewhere");
                if is_weights && r.method == "GET" {
                    reply = Reply::new(200, old.files[position].content.clone()).cut_at(9000);
                    reply = reply.with("X-Linked-Etag", format!("\"{old_etag}\""));
                }
                reply
            })
        }),
        Box::new(|_| None),
    );
    let world = hub.world();
    let error = pull(&world).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_nothing_half(&world, &today);
    assert_nothing_half(&world, &yesterday);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let repo = Repo::tiny();
    let hub = Hub::good(&repo);
    let mut world = hub.world();
    world.options.hub_token = Some("hf_secret".to_owned());
    pull(&world).unwrap();
    let sent = |server: &Server| -> Vec<Option<String>> {
        let requests = server.requests();
        requests.iter().map(|r| r.header("authorization").map(str::to_owned)).collect()
    };
    assert!(sent(&hub.hub).iter().all(|token| token.as_deref() == Some("Bearer hf_secret")));
    assert_eq!(sent(&hub.storage), [None]);
}

#[test]
fn too_many_requests_wait_as_long_as_they_are_told() {
    let repo = Repo::tiny();
    let busy = |r: &Request| {
        let first = r.path.starts_with("/api") && r.before == 0;
        first.then(|| Reply::new(429, "").with("Retry-After", 7))
    };
    let hub = Hub::tricky(&repo, Box::new(busy), Box::new(|_| None));
    let world = hub.world();
    assert_eq!(pull(&world).unwrap(), weights());
    assert_eq!(*world.machine.pauses.lock().unwrap(), [Duration::from_secs(7)]);

    let much_later = |_: &Request| Some(Reply::new(429, "").with("Retry-After", 86_400));
    let hub = Hub::tricky(&repo, Box::new(much_later), Box::new(|_| None));
    let world = hub.world();
    let error = pull(&world).unwrap_err().to_string();
    assert!(error.contains("too many requests (status 429)"), "{error}");
    assert!(world.machine.pauses.lock().unwrap().is_empty());
}

#[test]
fn errors_of_the_hub_are_tried_again_a_few_times() {
    let hub =
        Hub::tricky(&Repo::tiny(), Box::new(|_| Some(Reply::new(503, ""))), Box::new(|_| None));
    let error = pull(&hub.world()).unwrap_err().to_string();
    assert!(error.contains("status 503"), "{error}");
    assert_eq!(hub.hub.requests().len(), 5);
}

#[test]
fn what_is_missing_or_forbidden_is_said_with_a_hint() {
    let message = |status: u16, token: Option<&str>| {
        let answer = move |_: &Request| Some(Reply::new(status, ""));
        let hub = Hub::tricky(&Repo::tiny(), Box::new(answer), Box::new(|_| None));
        let mut world = hub.world();
        world.options.hub_token = token.map(str::to_owned);
        let error = pull(&world).unwrap_err().to_string();
        assert_eq!(hub.hub.requests().len(), 1, "no second try");
        error
    };
    assert!(message(401, None).contains("set HF_TOKEN"));
    assert!(message(403, Some("hf_x")).contains("accept the terms"));
    assert!(message(404, None).contains("has no `owner/tiny`"));
    assert!(!message(403, Some("hf_x")).contains("hf_x"));
}

#[test]
fn silence_is_a_failure_after_a_while() {
    let (hub, repo) = storage(|_| {
        let mut reply = Reply::new(200, weights()).cut_at(1000);
        reply.stall = true;
        Some(reply)
    });
    let mut world = hub.world();
    world.options.idle_timeout = Duration::from_millis(300);
    let error = pull(&world).unwrap_err().to_string();
    assert!(error.contains("the connection broke"), "{error}");
    assert_nothing_half(&world, &repo);
}

#[test]
fn a_disk_that_is_too_small_is_told_both_numbers() {
    let (hub, _) = storage(|_| None);
    let world = hub.world();
    world.machine.free.store(200_000, Ordering::SeqCst);
    let error = pull(&world).unwrap_err();
    let is = |error: &StoreError| {
        matches!(error, StoreError::DiskFull { needed_bytes: 300_000, free_bytes: 200_000, .. })
    };
    assert!(is(&error), "{error}");
    assert!(error.to_string().contains("300.0 kB needed, 200.0 kB free"), "{error}");
    assert!(hub.storage.requests().is_empty());
}

#[test]
fn a_hub_cannot_name_a_place_outside_of_the_cache() {
    let listing = |sha: &str, file: &str| {
        serde_json::json!({ "sha": sha, "siblings": [
            { "rfilename": file, "size": 1 }, { "rfilename": "model.safetensors", "size": 1 },
        ]})
        .to_string()
    };
    let commit = "c".repeat(40);
    let bad = [
        listing(&commit, "../../../config.json"),
        listing(&commit, "/etc/config.json"),
        listing(&commit, "a\\..\\config.json"),
        listing("../../x", "config.json"),
        listing("", "config.json"),
        "[]".to_owned(),
    ];
    for text in bad {
        let answer = move |_: &Request| Some(Reply::new(200, text.clone()));
        let hub = Hub::tricky(&Repo::tiny(), Box::new(answer), Box::new(|_| None));
        let world = hub.world();
        let error = pull(&world).unwrap_err();
        assert!(matches!(error, StoreError::Http { .. }), "{error}");
        assert!(!world.options.hub_cache.exists());
    }
    // An ETag that is a path is not used as a name; the list's hash is.
    let repo = Repo::tiny();
    let file = repo.file("config.json").clone();
    let answer = move |r: &Request| {
        let it = r.path.ends_with("/config.json");
        it.then(|| Reply::new(200, file.content.clone()).with("ETag", "\"../../../../evil\""))
    };
    let hub = Hub::tricky(&repo, Box::new(answer), Box::new(|_| None));
    let world = hub.world();
    pull(&world).unwrap();
    assert!(world.blobs(repo.id).contains(&repo.file("config.json").etag()));
}

#[test]
fn redirects_end_somewhere() {
    let round = |r: &Request| {
        r.path.contains("/resolve/").then(|| Reply::new(302, "").with("Location", &r.path))
    };
    let nowhere = |r: &Request| {
        r.path.contains("/resolve/").then(|| Reply::new(302, "").with("Location", "file:///etc/x"))
    };
    for trick in [Box::new(round) as crate::Trick, Box::new(nowhere)] {
        let hub = Hub::tricky(&Repo::tiny(), trick, Box::new(|_| None));
        let error = pull(&hub.world()).unwrap_err().to_string();
        assert!(error.contains("redirects"), "{error}");
    }
}
