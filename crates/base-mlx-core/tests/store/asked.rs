//! Whatever is listed can be asked for by its name, and then it is that very copy, wherever others lie.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use base_mlx_core::store::{Source, Store, StoreError};
use serde_json::json;

use crate::World;
use crate::adopted::{WHOLE, gguf, link, names, reasons, repository, survey};
use crate::gguf::GgufFile;

/// A model folder.
fn folder(world: &World, path: &str) -> PathBuf {
    for (file, content) in WHOLE {
        world.write(&format!("{path}/{file}"), content);
    }
    world.path(path)
}

/// Every name means its entry, whoever asks, and no name is there twice.
fn assert_names_hold(store: &Store) {
    let mut seen = BTreeSet::new();
    for entry in store.list() {
        assert!(seen.insert(entry.name.clone()), "`{}` is there twice", entry.name);
        for name in entry.aliases.iter().chain([&entry.name]) {
            for found in [store.find(name), store.find_installed(name)] {
                let found = found.unwrap_or_else(|error| panic!("`{name}`: {error}"));
                assert_eq!((&found.path, &found.source), (&entry.path, &entry.source), "{name}");
                assert_eq!((&found.real, found.bytes), (&entry.real, entry.bytes), "{name}");
            }
        }
    }
}

#[test]
fn of_two_with_one_name_the_second_has_another_or_its_path() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    let sources = json!([{ "hub": "me/catalogued" }]);
    world.catalogue(json!([{ "name": "word", "about": "a", "sources": sources }]));
    repository(&world, "me/a", &WHOLE);
    let second = folder(&world, ".lmstudio/models/me/a");
    // One GGUF file each: the tag tells them apart, and one with a tag of its own is only hidden by its short name.
    repository(&world, "me/b", &[("b-Q4_0.gguf", "x")]);
    world.write(".lmstudio/models/me/b/b-Q8_0.gguf", gguf());
    world.write(".cache/llama.cpp/word.gguf", gguf());
    let tagged = |world: &World, path: &str, of: &str| {
        world.write(path, gguf());
        let file = path.rsplit('/').next().unwrap();
        world.write(
            &format!("{path}.json"),
            json!({ "url": format!("https://hf.example/{of}/resolve/main/{file}") }).to_string(),
        );
    };
    tagged(&world, ".cache/llama.cpp/b-Q4_0.gguf", "me/b");

    let found = survey(&world);
    assert_eq!(names(&found), ["me/a", "me/b:Q4_0", "me/b:Q8_0"]);
    let nameless: Vec<_> =
        found.nameless.iter().map(|one| (&one.entry.name[..], &one.why[..])).collect();
    let hub = world.path(".cache/huggingface/hub");
    let at = |path: &str| hub.join(path).display().to_string();
    let a = at("models--me--a/snapshots/6e3f1d2c");
    let b = at("models--me--b/snapshots/6e3f1d2c/b-Q4_0.gguf");
    assert_eq!(
        nameless,
        [
            ("me/a", &*format!("`me/a` means the one of Hugging Face cache in {a}")),
            ("me/b:Q4_0", &*format!("`me/b:Q4_0` means the one of Hugging Face cache in {b}")),
            ("word", "`word` means a model of the catalogue"),
        ]
    );
    assert_names_hold(&world.store());
    for one in &found.nameless {
        let path = one.entry.path.to_str().unwrap();
        assert_eq!(world.store().find(path).unwrap().real, one.entry.real);
        // Clients choose no files by their paths.
        assert!(matches!(
            world.store().find_installed(path),
            Err(StoreError::NotFound { closest, .. }) if closest.iter().all(|name| !name.contains(".lmstudio"))
        ));
    }
    assert_eq!(found.nameless[0].entry.path, second);

    // What hid it goes, and the name is free.
    world.store().remove("me/a").unwrap();
    assert_eq!(world.store().find("me/a").unwrap().path, second);
    // The models folder comes before all others, aliases of the catalogue included.
    let own = folder(&world, "models/word");
    repository(&world, "me/catalogued", &WHOLE);
    assert_eq!(world.store().find("word").unwrap().path, own);
    let list = world.store().list();
    let entry = list.iter().find(|entry| entry.name == "me/catalogued").unwrap();
    assert_eq!(entry.aliases, [""; 0]);
    assert_names_hold(&world.store());
    fs::remove_dir_all(own).unwrap();
    assert_eq!(world.store().find("word").unwrap().source, Source::HubCache);
    assert_names_hold(&world.store());
}

#[test]
fn one_folder_of_two_tools_is_listed_once() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path(".lmstudio/models"));
    folder(&world, ".lmstudio/models/me/a");
    link(&world, "../.lmstudio", ".cache/lm-studio");
    let found = survey(&world);
    assert_eq!(names(&found), ["me/a"]);
    assert_eq!((found.models[0].source, &found.nameless[..]), (Source::ModelsDir, &[][..]));
    assert_names_hold(&world.store());
}

#[test]
fn names_that_the_hub_would_not_give_are_names_all_the_same() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    folder(&world, "models/my models/fine tune");
    folder(&world, "models/me/a--b");
    folder(&world, "models/odd.gguf");
    folder(&world, "models/~/x");
    world.write("models/line\nbreak.gguf", gguf());
    world.write(".lmstudio/models/some one/X GGUF/X Y-Q4_0.gguf", gguf());
    world.write(".lmstudio/models/some--one/two/A b-Q4_0.gguf", gguf());
    world.write(".lmstudio/models/some--one/two/A b-Q8_0.gguf", gguf());
    let found = survey(&world);
    assert_eq!(
        names(&found),
        [
            "me/a--b",
            "my models/fine tune",
            "odd.gguf",
            "some one/X GGUF",
            "some--one/two:Q4_0",
            "some--one/two:Q8_0",
        ]
    );
    assert_names_hold(&world.store());
    let why: Vec<_> = found.nameless.iter().map(|one| &one.why[..]).collect();
    assert_eq!(
        why,
        [
            "its name cannot be asked for: it is too long or has control characters in it",
            "its name cannot be asked for: it reads as a path",
        ]
    );
    let store = world.store();
    assert!(matches!(
        store.remove("some one/X GGUF"),
        Err(StoreError::NotOurs { owner: "LM Studio", .. })
    ));
    store.remove_forced("some one/X GGUF").unwrap();
    assert!(!world.path(".lmstudio/models/some one").exists());
}

#[test]
fn a_repository_without_an_owner_is_one() {
    let world = World::new();
    let gpt2 = repository(&world, "gpt2", &WHOLE);
    let files = repository(&world, "old", &[("old-Q4_0.gguf", "x"), ("old-Q8_0.gguf", "x")]);
    let half = repository(&world, "half", &WHOLE[..2]);
    world.write(&format!("{half}/blobs/9f.incomplete"), "w");
    let found = survey(&world);
    assert_eq!(names(&found), ["gpt2", "old:Q4_0", "old:Q8_0"]);
    assert_eq!(reasons(&found), [("half", "its download is not finished")]);
    assert_names_hold(&world.store());
    let store = world.store();
    store.remove("old:Q4_0").unwrap();
    assert_eq!(crate::names_in(&world.path(&format!("{files}/blobs"))), ["e1"]);
    store.remove("gpt2").unwrap();
    store.remove("half").unwrap();
    assert!(!world.path(&gpt2).exists() && !world.path(&half).exists());
    assert_eq!(names(&survey(&world)), ["old:Q8_0"]);
}

#[test]
fn a_single_file_of_lm_studios_has_the_names_that_it_has_on_the_hub() {
    let world = World::new();
    let path = world.write(".lmstudio/models/me/X-GGUF/X-Q4_K_M.gguf", gguf());
    world.write(".lmstudio/models/me/X-GGUF/mmproj-X-F16.gguf", gguf());
    let store = world.store();
    let [entry] = &store.list()[..] else { panic!() };
    assert_eq!(
        (&entry.name[..], &entry.aliases[..]),
        ("me/X-GGUF", &["me/X-GGUF:Q4_K_M".to_owned()][..])
    );
    for name in
        ["me/X-GGUF:Q4_K_M", "me/X-GGUF:q4_k_m", "me/X-GGUF:X-Q4_K_M.gguf", "me/X-GGUF:X-Q4_K_M"]
    {
        assert_eq!(store.find_installed(name).unwrap().path, path, "{name}");
    }
    for name in ["me/X-GGUF:Q8_0", "me/X-GGUF:", "me/X-GGUF:F16", "X-GGUF"] {
        assert!(store.find_installed(name).is_err(), "{name}");
    }
}

/// A model in so many files, each with a tensor, as `llama-gguf-split` makes them.
fn split(world: &World, path: &str, count: usize) -> Vec<PathBuf> {
    let part = |number: usize| {
        let file = GgufFile::new("llama")
            .pair("split.no", 2, &(number as u16).to_le_bytes())
            .pair("split.count", 2, &(count as u16).to_le_bytes())
            .f32_tensor(&format!("blk.{number}.attn_norm.weight"), &[8], &[0.5; 8]);
        world.write(&format!("{path}-{:05}-of-{count:05}.gguf", number + 1), file.bytes())
    };
    (0..count).map(part).collect()
}

#[test]
fn of_a_split_file_the_first_part_stands_for_all() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    let studio = split(&world, ".lmstudio/models/me/Big-GGUF/Big-Q4_K_M", 3);
    let own = split(&world, "models/big", 2);
    let cache = split(&world, ".cache/llama.cpp/me_other_other-Q8_0", 2);
    let note = json!({ "ggufFile": { "rfilename": "other-Q8_0-00001-of-00002.gguf", "size": fs::metadata(&cache[0]).unwrap().len() } });
    world.write(".cache/llama.cpp/manifest=me=other=latest.json", note.to_string());
    // Of these something is not there.
    fs::remove_file(&split(&world, "models/me/first", 3)[0]).unwrap();
    fs::remove_file(&split(&world, "models/me/last", 3)[2]).unwrap();
    let half = split(&world, "models/me/half", 3);
    fs::rename(&half[1], half[1].with_extension("gguf.part")).unwrap();
    let begun = split(&world, "models/me/begun", 2);
    fs::rename(&begun[0], begun[0].with_extension("gguf.part")).unwrap();
    fs::remove_file(&begun[1]).unwrap();

    let found = survey(&world);
    assert_eq!(names(&found), ["big", "me/Big-GGUF", "me/other:Q8_0"]);
    assert_eq!(
        reasons(&found),
        [
            ("me/begun", "its download is not finished"),
            ("me/first", "its part 1 of 3 is missing"),
            ("me/half", "its download is not finished"),
            ("me/last", "its part 3 of 3 is missing"),
        ]
    );
    assert_names_hold(&world.store());
    let store = world.store();
    for (name, parts) in [("me/Big-GGUF:q4_k_m", &studio), ("big", &own), ("me/other", &cache)] {
        let found = store.find(name).unwrap();
        let bytes: u64 = parts.iter().map(|part| fs::metadata(part).unwrap().len()).sum();
        assert_eq!((&found.path, found.bytes), (&parts[0], bytes), "{name}");
        let checkpoint = base_mlx_core::weights::Checkpoint::open(&found.path).unwrap();
        assert_eq!(checkpoint.tensors().count(), parts.len());
        let removed = store.remove_forced(name).unwrap();
        assert!(removed.bytes >= bytes && parts.iter().all(|part| !part.exists()), "{removed:?}");
    }
    assert!(crate::names_in(&world.path(".cache/llama.cpp")).is_empty());
    store.remove_forced("me/half").unwrap();
    assert!(half.iter().all(|part| !part.exists()));
}

#[test]
fn on_the_hub_a_split_file_is_one_of_its_files() {
    let world = World::new();
    let parts = [("big-Q4_0-00001-of-00002.gguf", "x"), ("big-Q4_0-00002-of-00002.gguf", "y")];
    let folder = repository(&world, "me/split", &parts);
    let snapshot = world.path(&format!("{folder}/snapshots/6e3f1d2c"));
    let store = world.store();
    assert_eq!(names(&survey(&world)), ["me/split:Q4_0"]);
    assert_names_hold(&store);
    let found = store.find("me/split").unwrap();
    assert_eq!((found.path, found.bytes), (snapshot.join(parts[0].0), 2));
    assert_eq!(found.real.file_name(), Path::new(parts[0].0).file_name(), "parts lie beside it");
    let path = snapshot.join(parts[0].0);
    for path in [&path, &snapshot] {
        let by_path = store.find(path.to_str().unwrap()).unwrap();
        assert_eq!((by_path.path, by_path.bytes), (found.real.clone(), 2));
    }
    assert_eq!(store.remove("me/split:Q4_0").unwrap().bytes, 2);
    assert!(crate::names_in(&world.path(&format!("{folder}/blobs"))).is_empty());
    assert!(crate::names_in(&snapshot).is_empty());
}

#[test]
fn whatever_links_lead_there_the_files_are_the_same() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    let file = world.write(".lmstudio/models/me/X-GGUF/X-Q4_0.gguf", gguf());
    link(&world, file.to_str().unwrap(), "models/linked.gguf");
    link(&world, world.path("models").to_str().unwrap(), "again");
    let store = world.store();
    let real = file.canonicalize().unwrap();
    let paths = [world.path("models/linked.gguf"), world.path("again/linked.gguf")];
    let paths = paths.map(|path| path.to_str().unwrap().to_owned());
    for name in ["linked", "me/X-GGUF", &paths[0], &paths[1]] {
        assert_eq!(store.find(name).unwrap().real, real, "{name}");
    }
}
