//! The folders of LM Studio, llama.cpp, Hugging Face's tools and the user, as these leave them: with links, halves of
//! downloads, and things that are no models.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base_mlx_core::store::{Fault, Source, StoreError, Survey, Unusable};
use base_mlx_core::weights::Checkpoint;

use crate::World;
use crate::gguf::GgufFile;

pub(crate) fn gguf() -> Vec<u8> {
    GgufFile::new("llama").f32_tensor("a.weight", &[64], &[0.5; 64]).bytes()
}

pub(crate) fn link(world: &World, target: &str, path: &str) {
    let path = world.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(target, path).unwrap();
}

pub(crate) fn survey(world: &World) -> Survey {
    world.store().survey(|_| Ok(()))
}

pub(crate) fn names(survey: &Survey) -> Vec<&str> {
    survey.models.iter().map(|entry| entry.name.as_str()).collect()
}

pub(crate) fn reasons(survey: &Survey) -> Vec<(&str, &str)> {
    survey.unusable.iter().map(|one| (one.name.as_str(), one.fault.why.as_str())).collect()
}

/// Every file, link and folder with what is in it.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            all.extend(everything(&path));
            all.insert(path, Vec::new());
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            all.insert(path, target.into_os_string().into_encoded_bytes());
        } else {
            all.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    all
}

/// A repository in the hub's cache: each file a link to a blob, as Hugging Face's tools make them.
pub(crate) fn repository(world: &World, repo: &str, files: &[(&str, &str)]) -> String {
    let folder = format!(".cache/huggingface/hub/models--{}", repo.replace('/', "--"));
    let commit = "6e3f1d2c";
    world.write(&format!("{folder}/refs/main"), commit);
    for (number, (file, content)) in files.iter().enumerate() {
        world.write(&format!("{folder}/blobs/e{number}"), content);
        link(
            world,
            &format!("../../blobs/e{number}"),
            &format!("{folder}/snapshots/{commit}/{file}"),
        );
    }
    folder
}

pub(crate) const WHOLE: [(&str, &str); 3] =
    [("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")];
const SHARDED: &str = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

#[test]
fn of_the_hubs_cache_whole_models_are_offered_and_broken_ones_told() {
    let world = World::new();
    repository(&world, "me/whole", &WHOLE);
    repository(
        &world,
        "me/ggufs",
        &[("x-Q4_0.gguf", "x"), ("x-Q8_0.gguf", "x"), ("mmproj-x.gguf", "x")],
    );
    // A blob that was cleared away.
    let cleared = repository(&world, "me/cleared", &WHOLE);
    fs::remove_file(world.path(&format!("{cleared}/blobs/e2"))).unwrap();
    let gone = repository(&world, "me/gone", &[("x-Q4_0.gguf", "x")]);
    fs::remove_file(world.path(&format!("{gone}/blobs/e0"))).unwrap();
    let config = repository(&world, "me/no-config", &WHOLE);
    fs::remove_file(world.path(&format!("{config}/blobs/e0"))).unwrap();
    // Downloads that stopped: of a file's weights, of one shard of two, of everything.
    let half = repository(&world, "me/half", &WHOLE[..2]);
    world.write(&format!("{half}/blobs/9f.incomplete"), "w");
    let shards = [
        WHOLE[0],
        WHOLE[1],
        ("model.safetensors.index.json", SHARDED),
        ("model-00001-of-00002.safetensors", "w"),
    ];
    repository(&world, "me/shards", &shards);
    let first = ".cache/huggingface/hub/models--me--first";
    world.write(&format!("{first}/blobs/9f.incomplete"), "w");
    world.write(".cache/huggingface/hub/models--me--pruned/refs/main", "0123abcd");
    repository(&world, "me/pickled", &[WHOLE[0], WHOLE[1], ("pytorch_model.bin", "w")]);
    repository(&world, "me/split", &[("big-Q4_0-00001-of-00002.gguf", "x")]);
    // No models: a tokenizer that someone needed, models of images, a data set.
    repository(&world, "me/tokenizer", &WHOLE[..2]);
    repository(&world, "me/vision", &[WHOLE[0], WHOLE[2], ("preprocessor_config.json", "{}")]);
    repository(&world, "me/images", &[("model_index.json", "{}"), ("unet/config.json", "{}")]);
    world.write(".cache/huggingface/hub/datasets--me--words/refs/main", "0123abcd");
    world.write(".cache/huggingface/hub/version.txt", "1");

    let before = everything(world.folder.path());
    let found = survey(&world);
    assert_eq!(names(&found), ["me/ggufs:Q4_0", "me/ggufs:Q8_0", "me/whole"]);
    assert_eq!(
        reasons(&found),
        [
            ("me/cleared", "its `model.safetensors` is a link to a file that is not there"),
            ("me/first", "its download is not finished"),
            ("me/gone:Q4_0", "it is a link to a file that is not there"),
            ("me/half", "its download is not finished"),
            ("me/no-config", "its `config.json` is a link to a file that is not there"),
            ("me/pickled", "its weights are not safetensors, which alone are read"),
            ("me/pruned", "its branch `main` leads to a version that is not there"),
            ("me/shards", "its `model-00002-of-00002.safetensors` is missing"),
            ("me/split:Q4_0", "its part 2 of 2 is missing"),
        ]
    );
    for Unusable { name, source, .. } in &found.unusable {
        assert_eq!(*source, Source::HubCache);
        // For `find` it is not there: a pull may mend it. Others are told what is wrong.
        assert!(matches!(world.store().find(name), Err(StoreError::NotFound { .. })), "{name}");
        let error = world.store().find_installed(name).unwrap_err();
        assert!(matches!(error, StoreError::Broken { .. }), "{error}");
    }
    assert_eq!(everything(world.folder.path()), before, "looking changes nothing");
    world.store().remove("me/gone:Q4_0").unwrap();
    world.store().remove("me/first").unwrap();
    assert_eq!(survey(&world).unusable.len(), 7);
}

#[test]
fn lm_studios_folders_are_those_of_its_settings() {
    let mut world = World::new();
    let home = world.folder.path().to_owned();
    world.write(
        ".lmstudio/settings.json",
        format!(r#"{{"downloadsFolder": "{}/disk/llms"}}"#, home.display()),
    );
    world.write(".lmstudio/models/lmstudio-community/A-GGUF/A-Q4_K_M.gguf", gguf());
    world.write(".lmstudio/models/lmstudio-community/A-GGUF/mmproj-A-F16.gguf", gguf());
    world.write("disk/llms/mlx-community/B-4bit/config.json", "{}");
    world.write("disk/llms/mlx-community/B-4bit/tokenizer.json", "{}");
    world.write("disk/llms/mlx-community/B-4bit/model.safetensors", "w");
    world.write(".cache/lm-studio/models/old/C-GGUF/C-Q8_0.gguf", gguf());
    // What its downloads leave when they stop.
    world.write("disk/llms/half/D-GGUF/downloading_D-Q4_0.gguf.part", "GG");
    world.write("disk/llms/half/E-4bit/config.json", "{}");
    world.write("disk/llms/half/E-4bit/tokenizer.json", "{}");
    world.write("disk/llms/half/E-4bit/model.safetensors.index.json", SHARDED);
    world.write("disk/llms/half/E-4bit/model-00001-of-00002.safetensors", "w");
    world.write("disk/llms/half/E-4bit/model-00002-of-00002.safetensors.part", "w");
    link(&world, "/nowhere/F", "disk/llms/half/F");
    world.write("disk/llms/readme.gguf", "too high");

    let options = base_mlx_core::store::StoreOptions::from_vars(|name| {
        (name == "HOME").then(|| home.clone().into_os_string())
    });
    world.options.lm_studio = options.lm_studio;
    world.options.lm_studio_others = options.lm_studio_others;
    let found = survey(&world);
    assert_eq!(names(&found), ["lmstudio-community/A-GGUF", "mlx-community/B-4bit", "old/C-GGUF"]);
    assert!(found.models.iter().all(|entry| entry.source == Source::LmStudio));
    assert_eq!(
        reasons(&found),
        [
            ("half/D-GGUF", "its download is not finished"),
            ("half/E-4bit", "its `model-00002-of-00002.safetensors` is only half there"),
            ("half/F", "it is a link to a file that is not there"),
        ]
    );

    let store = world.store();
    let path = store.find("old/C-GGUF").unwrap().path;
    assert!(matches!(
        store.remove("old/C-GGUF"),
        Err(StoreError::NotOurs { owner: "LM Studio", .. })
    ));
    assert!(store.remove("half/E-4bit").is_err());
    store.remove_forced("old/C-GGUF").unwrap();
    assert!(!path.exists() && world.path(".cache/lm-studio/models").exists());
    store.remove_forced("half/E-4bit").unwrap();
    store.remove_forced("half/F").unwrap();
    assert_eq!(reasons(&survey(&world)), [("half/D-GGUF", "its download is not finished")]);
}

#[test]
fn llama_cpps_cache_tells_by_its_notes_whose_a_file_is() {
    let world = World::new();
    let folder = ".cache/llama.cpp";
    let file = gguf();
    let manifest = |rfilename: &str, size: usize| {
        let lfs = serde_json::json!({ "sha256": "ab", "size": size });
        let file = serde_json::json!({ "rfilename": rfilename, "size": size, "lfs": lfs });
        serde_json::json!({ "ggufFile": file, "mmprojFile": null }).to_string()
    };
    // An underscore may be the name's own: only the manifest tells.
    world.write(&format!("{folder}/ggml-org_gemma_it-GGUF_gemma-Q4_K_M.gguf"), &file);
    world.write(&format!("{folder}/ggml-org_gemma_it-GGUF_gemma-Q4_K_M.gguf.etag"), "\"ab\"");
    world.write(
        &format!("{folder}/manifest=ggml-org=gemma_it-GGUF=latest.json"),
        manifest("gemma-Q4_K_M.gguf", file.len()),
    );
    world.write(&format!("{folder}/ggml-org_gemma_it-GGUF_mmproj-gemma-f16.gguf"), &file);
    // Older versions wrote the address down.
    world.write(&format!("{folder}/me_old_old-Q8_0.gguf"), &file);
    let url = r#"{"etag": "\"x\"", "lastModified": "", "url": "https://huggingface.co/me/old/resolve/main/old-Q8_0.gguf"}"#;
    world.write(&format!("{folder}/me_old_old-Q8_0.gguf.json"), url);
    // Fetched by its address alone.
    world.write(&format!("{folder}/plain.gguf"), &file);
    world.write(&format!("{folder}/me_half_half-Q4_0.gguf.downloadInProgress"), "GG");
    world.write(&format!("{folder}/manifest=me=half=Q4_0.json"), manifest("half-Q4_0.gguf", 900));
    world.write(&format!("{folder}/me_cut_sub_cut-Q4_0.gguf"), &file);
    world.write(
        &format!("{folder}/manifest=me=cut=latest.json"),
        manifest("sub/cut-Q4_0.gguf", 5_000_000),
    );
    // Newer ones lay the folder out as the hub's cache.
    world.write(&format!("{folder}/models--me--new/refs/main"), "abc");
    world.write(&format!("{folder}/models--me--new/blobs/e0"), &file);
    link(
        &world,
        "../../blobs/e0",
        &format!("{folder}/models--me--new/snapshots/abc/new-Q4_0.gguf"),
    );

    let found = survey(&world);
    assert_eq!(
        names(&found),
        ["ggml-org/gemma_it-GGUF:Q4_K_M", "me/new:Q4_0", "me/old:Q8_0", "plain"]
    );
    assert_eq!(
        reasons(&found),
        [
            ("me/cut:Q4_0", &*format!("it has {} bytes of 5.0 MB", file.len())),
            ("me/half:Q4_0", "its download is not finished"),
        ]
    );
    let store = world.store();
    for entry in &found.models {
        assert_eq!(entry.source, Source::LlamaCpp);
        assert_eq!(store.find_installed(&entry.name).unwrap().path, entry.path);
    }
    assert_eq!(store.find("me/old").unwrap().name, "me/old");

    assert!(matches!(store.remove("me/old"), Err(StoreError::NotOurs { owner: "llama.cpp", .. })));
    store.remove_forced("ggml-org/gemma_it-GGUF:Q4_K_M").unwrap();
    store.remove_forced("me/old").unwrap();
    store.remove_forced("me/new:Q4_0").unwrap();
    let blobs = world.path(&format!("{folder}/models--me--new/blobs"));
    assert!(crate::names_in(&blobs).is_empty());
    let left = crate::names_in(&world.path(folder));
    assert!(!left.iter().any(|name| name.contains("me_old")), "{left:?}");
    assert!(
        !left.iter().any(|name| name.contains("gemma-Q4_K_M") || name.contains("GGUF=latest")),
        "{left:?}"
    );
}

#[test]
fn in_the_models_folder_links_are_followed_and_halves_are_told() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    world.write("elsewhere/x.gguf", gguf());
    world.write("elsewhere/y/config.json", "{}");
    link(&world, "../elsewhere/x.gguf", "models/linked.gguf");
    link(&world, "../elsewhere/y", "models/folder");
    link(&world, "../elsewhere/gone.gguf", "models/gone.gguf");
    link(&world, "itself.gguf", "models/itself.gguf");
    link(&world, "/nowhere", "models/me/nowhere");
    world.write("models/a.gguf.part", "GG");
    world.write("models/b.gguf", gguf());
    world.write("models/b.gguf.aria2", "control");
    world.write("models/c.gguf", gguf());
    world.write("models/c.gguf.part", "a second download of it");
    world.write("models/me/d-00001-of-00002.gguf", gguf());
    world.write("models/me/d-00002-of-00002.gguf", gguf());
    world.write("models/notes.part", "x");
    let whole = gguf();
    world.write("models/cut.gguf", &whole[..whole.len() - 64]);

    let found = survey(&world);
    assert_eq!(names(&found), ["c", "cut", "folder", "linked", "me/d"]);
    let dangling = "it is a link to a file that is not there";
    let half = "its download is not finished";
    assert_eq!(
        reasons(&found),
        [
            ("a", half),
            ("b", half),
            ("gone", dangling),
            ("itself", dangling),
            ("me/nowhere", dangling),
        ]
    );
    // What only a look into the file tells.
    let read = |path: &Path| {
        Checkpoint::open(path).map(|_| ()).map_err(|error| Fault::broken(error.to_string()))
    };
    let found = world.store().survey(|entry| read(&entry.path));
    assert_eq!(names(&found), ["c", "linked"]);
    let cut = found.unusable.iter().find(|one| one.name == "cut").unwrap();
    assert!(cut.fault.why.contains("cut.gguf is damaged"), "{}", cut.fault.why);

    let store = world.store();
    for name in ["gone", "a", "linked", "folder"] {
        assert!(matches!(store.remove(name), Err(StoreError::NotOurs { .. })), "{name}");
        store.remove_forced(name).unwrap();
    }
    assert!(
        world.path("elsewhere/x.gguf").exists() && world.path("elsewhere/y/config.json").exists()
    );
    let path = world.path("models/c.gguf");
    assert!(matches!(store.remove_forced(path.to_str().unwrap()), Err(StoreError::NotOurs { .. })));
    assert!(path.exists());
}

#[test]
fn what_is_broken_is_not_removed_in_place_of_what_is_sound() {
    let world = World::new();
    // LM Studio's is half, the hub's is whole; of another one LM Studio's is half and the hub has two of that repository.
    let hub = repository(&world, "me/a", &WHOLE);
    let other = repository(&world, "me/b", &[("x-Q4_0.gguf", "x"), ("x-Q8_0.gguf", "x")]);
    for name in ["a", "b"] {
        world.write(&format!(".lmstudio/models/me/{name}/config.json"), "{}");
        world.write(&format!(".lmstudio/models/me/{name}/downloading_model.safetensors.part"), "w");
    }
    let before = everything(world.folder.path());
    for name in ["me/a", "me/b"] {
        let error = world.store().remove_forced(name).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{name}` lies in two places: ")), "{error}");
    }
    assert_eq!(everything(world.folder.path()), before);
    world.store().remove("me/a").unwrap();
    assert!(!world.path(&hub).exists() && world.path(&other).exists());
}

#[test]
fn what_a_link_of_the_hubs_leads_to_elsewhere_stays() {
    let world = World::new();
    let folder = repository(&world, "me/x", &[("x-Q8_0.gguf", "x")]);
    let elsewhere = world.write("disk/x-Q4_0.gguf", "x");
    let place = format!("{folder}/snapshots/6e3f1d2c/x-Q4_0.gguf");
    link(&world, elsewhere.to_str().unwrap(), &place);
    world.store().remove("me/x:Q4_0").unwrap();
    assert!(elsewhere.exists() && !world.path(&place).is_symlink());
}

#[test]
fn a_pull_of_ours_that_stopped_is_told() {
    let world = World::new();
    world.write(".cache/huggingface/hub/models--me--x/blobs/9f.ranges", "w");
    assert_eq!(reasons(&survey(&world)), [("me/x", "its download is not finished")]);
    world.store().remove("me/x").unwrap();
    assert_eq!(reasons(&survey(&world)), []);
}

/// Behind a link to a folder lies what is not the place's, and may be the only one of its kind.
#[test]
fn what_lies_behind_a_linked_folder_stays() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    world.write("elsewhere/owner/x.gguf", gguf());
    fs::create_dir_all(world.path("models")).unwrap();
    symlink(world.path("elsewhere/owner"), world.path("models/owner")).unwrap();
    let store = world.store();
    let survey = survey(&world);
    assert_eq!(names(&survey), ["owner/x"]);
    let error = store.remove_forced("owner/x").unwrap_err();
    let told = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(told.contains("a link leads from"), "{told}");
    assert!(world.path("elsewhere/owner/x.gguf").is_file());
}
