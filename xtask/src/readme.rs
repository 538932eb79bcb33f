//! Runs what the README shows of tools, structured output, thoughts and embeddings, exactly as it is written there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::ci::{OPENAI_CLIENT, Server};
use crate::{process, python};

/// An example, and the language of its fence.
#[derive(Debug, PartialEq)]
struct Example<'a> {
    language: &'a str,
    text: &'a str,
}

pub(crate) fn run(root: &Path) -> Result<()> {
    let readme = std::fs::read_to_string(root.join("README.md")).context("read README.md")?;
    // The port that the examples name.
    let _server = Server::start(root, 11435)?;
    for section in SECTIONS {
        let examples = examples(&readme, section);
        ensure!(!examples.is_empty(), "section `{section}` of the README shows nothing");
        for Example { language, text } in examples {
            let mut command = match language {
                "python" => python::with_packages(root, "openai", OPENAI_CLIENT)?,
                "sh" => Command::new("sh"),
                other => anyhow::bail!("section `{section}` has an example in {other:?}"),
            };
            if language == "sh" {
                command.arg("-e");
            }
            let printed = process::output(command.args(["-c", text]))?;
            println!("{}", printed.trim_end());
            ensure!(!printed.trim().is_empty(), "this example prints nothing:\n{text}");
            // `curl` itself does not mind.
            ensure!(!printed.contains("\"error\""), "this example fails:\n{text}");
        }
    }
    Ok(())
}

/// The fenced blocks of the section with that title.
fn examples<'a>(readme: &'a str, title: &str) -> Vec<Example<'a>> {
    let heading = format!("\n## {title}\n");
    let Some((_, section)) = readme.split_once(&heading) else { return Vec::new() };
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut fences = section.split("```");
    // What stands between two fences, and what behind them.
    let mut examples = Vec::new();
    while let (Some(_), Some(block)) = (fences.next(), fences.next()) {
        let (language, text) = block.split_once('\n').unwrap_or((block, ""));
        examples.push(Example { language, text });
    }
    examples
}

const SECTIONS: [&str; 4] = ["Tools", "Structured output", "Thoughts", "Embeddings"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_the_blocks_of_their_section() {
        let readme = "# A\n\n## B\n\nx `y` z\n\n```sh\none\ntwo\n```\n\ntext\n\n```python\nthree\n```\n\n## C\n\n```\n4\n```\n";
        let example = |language, text| Example { language, text };
        assert_eq!(
            examples(readme, "B"),
            [example("sh", "one\ntwo\n"), example("python", "three\n")]
        );
        assert_eq!(examples(readme, "C"), [example("", "4\n")]);
        assert!(examples(readme, "D").is_empty());
    }
}
