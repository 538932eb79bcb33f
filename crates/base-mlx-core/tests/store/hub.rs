use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use base_mlx_core::store::{Silent, Source, StoreError};

use crate::server::{Reply, Repo, weights};
use crate::{Hub, Told, names_in};

#[test]
fn a_pull_leaves_what_hugging_faces_tools_would_leave() {
    let repo = Repo::tiny();
    let hub = Hub::good(&repo);
    let world = hub.world();
    let told = Told::default();
    let model = world.store().pull("owner/tiny", &told).unwrap();

    let folder = world.options.hub_cache.join("models--owner--tiny");
    let snapshot = folder.join("snapshots").join(&repo.commit);
    assert_eq!((model.name.as_str(), model.source), ("owner/tiny", Source::HubCache));
    assert_eq!(model.path, snapshot);
    let expected =
        ["additional_chat_templates", "config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names_in(&snapshot), expected);
    for path in ["config.json", "additional_chat_templates/tools.jinja", "model.safetensors"] {
        assert_eq!(fs::read(snapshot.join(path)).unwrap(), repo.file(path).content);
    }
    let link = fs::read_link(snapshot.join("additional_chat_templates/tools.jinja")).unwrap();
    let etag = repo.file("additional_chat_templates/tools.jinja").etag();
    assert_eq!(link, Path::new(&format!("../../../blobs/{etag}")));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), repo.commit);
    let locks = world.options.hub_cache.join(".locks/models--owner--tiny");
    assert!(locks.join(format!("{}.lock", repo.file("model.safetensors").etag())).is_file());
    let downloaded: usize =
        repo.files[..3].iter().map(|f| f.content.len()).sum::<usize>() + 300_000;
    assert_eq!(told.advanced.load(Ordering::SeqCst), downloaded as u64);

    let store = world.store();
    assert_eq!(store.find("owner/tiny").unwrap(), model);
    assert!(matches!(store.find("owner/Tiny"), Err(StoreError::NotFound { .. })));
    assert_eq!(store.list().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["owner/tiny"]);

    let requests = hub.hub.requests().len();
    store.pull("owner/tiny", &Silent).unwrap();
    assert_eq!(hub.hub.requests().len(), requests + 1, "the list alone is asked for again");
}

#[test]
fn an_interrupted_pull_goes_on_where_it_stopped() {
    let repo = Repo::tiny();
    let content = weights();
    let broken = std::sync::Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let hub = Hub::tricky(
        &repo,
        Box::new(|_| None),
        Box::new(move |r| match is_broken.load(Ordering::SeqCst) {
            true if r.before == 0 => Some(Reply::new(200, content.clone()).cut_at(100_000)),
            true => Some(Reply::new(500, "")),
            false => None,
        }),
    );
    let world = hub.world();
    assert!(world.store().pull("owner/tiny", &Silent).is_err());
    let etag = repo.file("model.safetensors").etag();
    let incomplete = format!("{etag}.incomplete");
    assert!(world.blobs("owner/tiny").contains(&incomplete));
    assert!(!world.blobs("owner/tiny").contains(&etag));
    assert!(matches!(world.store().find("owner/tiny"), Err(StoreError::NotFound { .. })));
    assert!(world.store().list().is_empty());

    broken.store(false, Ordering::SeqCst);
    let told = Told::default();
    let model = world.store().pull("owner/tiny", &told).unwrap();
    assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), weights());
    let last = hub.storage.requests().pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=100000-"));
    assert_eq!(last.header("if-range"), None, "the storage has ETags of its own");
    // Of all files, of which the small ones are here.
    let small: usize = repo.files[..3].iter().map(|file| file.content.len()).sum();
    let all = ("owner/tiny".to_owned(), Some(300_000 + small as u64), 100_000 + small as u64);
    assert_eq!(*told.started.lock().unwrap(), [all]);
    assert_eq!(told.advanced.load(Ordering::SeqCst), 200_000);
    assert!(!world.blobs("owner/tiny").contains(&incomplete));
}

#[test]
fn the_hub_itself_is_asked_for_the_rest_of_the_same_content_only() {
    let repo = Repo::tiny().small("vocab.json", weights());
    let etag = repo.file("vocab.json").etag();
    let quoted = format!("\"{etag}\"");
    let hub = Hub::tricky(
        &repo,
        Box::new(move |r| {
            let first = r.method == "GET" && r.path.ends_with("vocab.json") && r.before == 0;
            first.then(|| Reply::new(200, weights()).with("ETag", &quoted).cut_at(70_000))
        }),
        Box::new(|_| None),
    );
    let world = hub.world();
    let model = world.store().pull("owner/tiny", &Silent).unwrap();
    assert_eq!(fs::read(model.path.join("vocab.json")).unwrap(), weights());
    let requests = hub.hub.requests();
    let rest = requests.iter().find(|r| r.header("range").is_some()).unwrap();
    assert_eq!(rest.header("range"), Some("bytes=70000-"));
    assert_eq!(rest.header("if-range"), Some(format!("\"{etag}\"").as_str()));
}

#[test]
fn two_pulls_at_once_fetch_each_file_once() {
    let repo = Repo::tiny();
    let hub = Hub::good(&repo);
    let world = hub.world();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| world.store().pull("owner/tiny", &Silent).unwrap()))
            .collect();
        for pull in pulls {
            let model = pull.join().unwrap();
            assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), weights());
        }
    });
    assert_eq!(hub.hub.count("GET", "/config.json"), 1);
    assert_eq!(hub.storage.requests().len(), 1);
    assert_eq!(world.blobs("owner/tiny").len(), 4, "no leftovers");
}

#[test]
fn shards_are_those_of_the_index() {
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let repo = Repo { files: Vec::new(), ..Repo::tiny() }
        .small("config.json", "{}")
        .small("tokenizer.json", "{}")
        .small("model.safetensors.index.json", index)
        .large("model-1.safetensors", *b"one")
        .large("model-2.safetensors", *b"two")
        .large("consolidated.safetensors", *b"one and two");
    let hub = Hub::good(&repo);
    let model = hub.world().store().pull("owner/tiny", &Silent).unwrap();
    assert!(model.bytes > 0);
    assert_eq!(hub.storage.requests().len(), 2);

    let mut lacking = repo.clone();
    lacking.files.retain(|file| file.path != "model-2.safetensors");
    let hub = Hub::good(&lacking);
    let error = hub.world().store().pull("owner/tiny", &Silent).unwrap_err().to_string();
    assert!(error.contains("names `model-2.safetensors`, which is missing"), "{error}");
}

#[test]
fn a_gguf_file_is_chosen_by_its_tag() {
    let repo = Repo { files: Vec::new(), ..Repo::tiny() }
        .large("tiny-Q4_K_M.gguf", *b"four")
        .large("tiny-Q8_0.gguf", *b"eight");
    let hub = Hub::good(&repo);
    let world = hub.world();
    let store = world.store();
    let error = store.pull("owner/tiny", &Silent).unwrap_err();
    assert!(matches!(&error, StoreError::Ambiguous { names, .. } if names.len() == 2), "{error}");

    let model = store.pull("owner/tiny:Q8_0", &Silent).unwrap();
    assert_eq!(model.path.file_name().unwrap(), "tiny-Q8_0.gguf");
    assert_eq!(fs::read(&model.path).unwrap(), b"eight");
    assert_eq!(store.find("owner/tiny:Q8_0").unwrap(), model);
    assert!(store.find("owner/tiny:Q4_K_M").is_err());
    store.pull("owner/tiny:Q4_K_M", &Silent).unwrap();
    let names: Vec<_> = store.list().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["owner/tiny:Q4_K_M", "owner/tiny:Q8_0"]);

    store.remove("owner/tiny:Q8_0").unwrap();
    assert!(store.find("owner/tiny:Q8_0").is_err());
    assert_eq!(world.blobs("owner/tiny").len(), 1);
}

#[test]
fn a_revision_is_a_name_of_its_own() {
    let repo = Repo::tiny();
    let hub = Hub::good(&repo);
    let world = hub.world();
    let store = world.store();
    store.pull("owner/tiny@refs/pr/1", &Silent).unwrap();
    assert_eq!(
        hub.hub.requests()[0].path,
        "/api/models/owner/tiny/revision/refs%2Fpr%2F1?blobs=true"
    );
    assert!(store.find("owner/tiny@refs/pr/1").is_ok());
    assert!(store.find(&format!("owner/tiny@{}", repo.commit)).is_ok());
    assert!(store.find("owner/tiny").is_err());
}

#[test]
fn an_alias_is_found_wherever_its_repository_lies() {
    let repo = Repo::tiny();
    let hub = Hub::good(&repo);
    let mut world = hub.world();
    world.catalogue(serde_json::json!([
        { "name": "tiny", "about": "", "sources": [{ "hub": "owner/tiny" }] }
    ]));
    let store = world.store();
    let model = store.pull("tiny", &Silent).unwrap();
    assert_eq!(model.name, "tiny");
    assert_eq!(store.find("owner/tiny").unwrap().name, "owner/tiny");
    let entry = &store.list()[0];
    assert_eq!(
        (entry.name.as_str(), entry.aliases.as_slice()),
        ("owner/tiny", &["tiny".to_owned()][..])
    );
    assert_eq!(entry.bytes, 300_000 + 22 + 2);

    let removed = store.remove("tiny").unwrap();
    assert!(removed.bytes >= 300_000);
    assert!(store.list().is_empty());
    assert!(!world.options.hub_cache.join("models--owner--tiny").exists());
    assert!(matches!(store.remove("tiny"), Err(StoreError::NotFound { .. })));
}

#[test]
fn without_the_hub_the_copy_on_disk_serves() {
    let repo = Repo::tiny();
    let mut world = {
        let hub = Hub::good(&repo);
        let world = hub.world();
        world.store().pull("owner/tiny", &Silent).unwrap();
        world
    };
    let told = Told::default();
    world.store().pull("owner/tiny", &told).unwrap();
    assert!(told.messages()[0].ends_with("using the copy on disk"), "{:?}", told.messages());
    world.options.hub_offline = true;
    world.store().pull("owner/tiny", &Silent).unwrap();
    assert!(matches!(world.store().pull("owner/x", &Silent), Err(StoreError::Offline { .. })));
}
