use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::process::{User, output};

fn vectors(stdout: &str) -> Vec<Vec<f32>> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_text_is_a_line_of_numbers() {
    let user = User::new();
    let texts = ["A cat sleeps.", "A dog barks."];
    let (success, stdout, stderr) =
        output(&mut user.command_with_models(&["embed", texts[0], texts[1]]));
    assert!(success, "{stderr}");
    assert_eq!(stderr, "");
    let both = vectors(&stdout);
    assert_eq!([both.len(), both[0].len(), both[1].len()], [2, 384, 384]);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts.txt");
    std::fs::write(&file, texts.join("\n") + "\n").unwrap();
    let path = file.to_str().unwrap();
    let (success, stdout, _) = output(&mut user.command_with_models(&["embed", "--file", path]));
    assert!(success);
    assert_eq!(vectors(&stdout), both);

    let mut command = user.command_with_models(&["embed", "--file", "-", "--dimensions", "8"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", texts[1]).unwrap();
    let short = child.wait_with_output().unwrap();
    let short = vectors(&String::from_utf8(short.stdout).unwrap());
    let length = short[0].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_eq!((short.len(), short[0].len()), (1, 8));
    assert!((length - 1.0).abs() < 1e-5, "{length}");
}

#[test]
fn a_gguf_file_embeds_and_does_not_write() {
    let user = User::new();
    let file = encoder_gguf("bert");
    let file = file.to_str().unwrap();
    let (success, stdout, stderr) =
        output(&mut user.command(&["embed", "--model", file, "the cat", "a"]));
    assert!(success, "{stderr}");
    let both = vectors(&stdout);
    assert_eq!([both.len(), both[0].len(), both[1].len()], [2, 32, 32]);
    for vector in &both {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    assert_ne!(both[0], both[1]);
    let (success, _, stderr) = output(&mut user.command(&["run", file, "a"]));
    assert!(
        !success && stderr.contains("it turns texts into vectors, and does not write"),
        "{stderr}"
    );
}

/// One of the tiny models that the engine's tests have.
pub(crate) fn encoder_gguf(name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../base-mlx-core/tests/golden");
    golden.join("encoders").join(name).join("twin.gguf").canonicalize().unwrap()
}

#[test]
fn what_cannot_be_embedded_is_told() {
    let user = User::new();
    let fails = |arguments: &[&str]| {
        let (success, stdout, stderr) = output(&mut user.command_with_models(arguments));
        assert!(!success && stdout.is_empty(), "{stdout}");
        stderr
    };
    assert!(fails(&["embed"]).contains("<TEXTS>"));
    assert!(fails(&["embed", ""]).contains("text 1 is empty"));
    assert!(fails(&["embed", "--file", "/nowhere/x"]).contains("cannot open /nowhere/x"));
    assert!(fails(&["embed", "a", "--dimensions", "385"]).contains("the model's vectors have 384"));
    assert!(
        fails(&["embed", "a", "--prompt-name", "query"])
            .contains("there is no prompt \"query\"; the model has none")
    );
    let long = "word ".repeat(600);
    let error = fails(&["embed", "a", &long]);
    assert!(error.contains("text 2 has 602 tokens, the model takes 512"), "{error}");
    let error = fails(&["embed", "a", "--model", "smollm2"]);
    assert!(error.contains("it writes texts, and makes no vectors of them"), "{error}");
    let error = fails(&["run", "minilm", "a"]);
    assert!(error.contains("it turns texts into vectors, and does not write"), "{error}");
}
