//! What the compiler does not check. ARCHITECTURE.md draws the arrows, in its block ```` ```arrows ````, one line a
//! folder: `core::nn → core::backend core::tensor`. A crate stands without `base-mlx-`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const MOST_LINES: usize = 600;
const NAMES_THAT_SAY_NOTHING: &[&str] = &["utils", "util", "helpers", "common", "misc", "manager"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let page = root.join("ARCHITECTURE.md");
    let text =
        std::fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
    let arrows = Arrows::read(&text)?;
    let mut faults = Vec::new();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let folder = entry?.path();
        let manifest = folder.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)
            .with_context(|| format!("read {}", manifest.display()))?;
        let place = shown(root, &manifest);
        faults.extend(dependencies(&arrows, &text).map(|fault| fault.at(&place)));
    }
    for top in ["crates", "xtask"] {
        for file in sources(&root.join(top))? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("read {}", file.display()))?;
            let place = shown(root, &file);
            faults.extend(source(&arrows, &place, &text).into_iter().map(|f| f.at(&place)));
        }
    }
    faults.sort();
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("tidy found {} faults", faults.len());
    }
    Ok(())
}

struct Fault {
    line: usize,
    what: String,
}

impl Fault {
    fn at(&self, place: &str) -> String {
        format!("{place}:{}: {}", self.line, self.what)
    }
}

/// Who may use whom. A folder's right to a crate as a whole holds for all of the crate's folders.
struct Arrows(BTreeMap<String, BTreeSet<String>>);

impl Arrows {
    fn read(page: &str) -> Result<Self> {
        let mut arrows = BTreeMap::new();
        let block = page.lines().skip_while(|line| line.trim() != "```arrows").skip(1);
        for line in block.take_while(|line| line.trim() != "```") {
            let (from, to) =
                line.split_once('→').with_context(|| format!("no arrow in `{line}`"))?;
            let to = to.split_whitespace().map(str::to_owned).collect();
            arrows.insert(from.trim().to_owned(), to);
        }
        ensure!(!arrows.is_empty(), "ARCHITECTURE.md has no block ```arrows");
        Ok(Self(arrows))
    }

    fn allow(&self, from: &str, to: &str) -> bool {
        let krate = to.split("::").next().unwrap_or(to);
        self.0.get(from).is_some_and(|to_all| to_all.contains(to) || to_all.contains(krate))
    }

    /// May the crate use any part of the other one?
    fn allow_part(&self, from: &str, krate: &str) -> bool {
        self.0.get(from).is_some_and(|to_all| {
            to_all.iter().any(|to| to.split("::").next().is_some_and(|to| to == krate))
        })
    }

    fn crates(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|name| !name.contains("::"))
    }

    /// Are the crate's folders drawn one by one?
    fn draw_folders(&self, krate: &str) -> bool {
        self.0.keys().any(|from| from.starts_with(krate) && from[krate.len()..].starts_with("::"))
    }
}

fn dependencies<'a>(arrows: &Arrows, manifest: &'a str) -> impl Iterator<Item = Fault> + use<'a> {
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = \"base-mlx-"));
    let name = name.map(|rest| rest.trim_end_matches('"')).unwrap_or_default().to_owned();
    let mut section = "";
    let mut faults = Vec::new();
    for (number, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        }
        let Some(rest) = line.strip_prefix("base-mlx-") else { continue };
        let dependency = rest.split(['.', ' ', '=']).next().unwrap_or_default();
        if section == "[dependencies]" && !arrows.allow_part(&name, dependency) {
            let what = format!("ARCHITECTURE.md draws no arrow {name} → {dependency}");
            faults.push(Fault { line: number + 1, what });
        }
    }
    faults.into_iter()
}

fn source(arrows: &Arrows, place: &str, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let stem = Path::new(place).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let named_so = |name: &str| NAMES_THAT_SAY_NOTHING.contains(&name);
    if named_so(stem) || place.split('/').any(named_so) {
        faults.push(Fault { line: 1, what: "the name says nothing; name the idea".into() });
    }
    // Assembled, so that this file does not find itself.
    let leftovers =
        [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[", "ignore")];
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for leftover in leftovers {
            if code.contains(leftover) {
                faults.push(Fault { line: number + 1, what: format!("`{leftover}` is left over") });
            }
        }
    }
    let Some((krate, folder)) = location(place) else { return faults };

    let code = code_only(text);
    let lines = code.lines().count();
    if lines > MOST_LINES {
        let what =
            format!("{lines} lines without tests, {MOST_LINES} at most; find the second idea");
        faults.push(Fault { line: MOST_LINES + 1, what });
    }
    for used in paths(&code, "crate::") {
        let Some(folder) = folder.filter(|_| arrows.draw_folders(krate)) else { break };
        let (from, to) = (format!("{krate}::{folder}"), format!("{krate}::{}", used.name));
        if from != to && !arrows.allow(&from, &to) {
            let what = format!("ARCHITECTURE.md draws no arrow {from} → {to}");
            faults.push(Fault { line: used.line, what });
        }
    }
    for other in arrows.crates() {
        for used in paths(&code, &format!("base_mlx_{other}::")) {
            let to = format!("{other}::{}", used.name);
            if other != krate && !arrows.allow(krate, &to) {
                let what = format!("ARCHITECTURE.md draws no arrow {krate} → {to}");
                faults.push(Fault { line: used.line, what });
            }
        }
    }
    faults
}

/// `crates/base-mlx-core/src/nn/norm.rs` is in crate `core`, folder `nn`; `src/nn.rs` is too; `src/lib.rs` is in no
/// folder. Files outside `src` are tests, which may reach everywhere.
fn location(place: &str) -> Option<(&str, Option<&str>)> {
    let (krate, path) = place.strip_prefix("crates/base-mlx-")?.split_once("/src/")?;
    let folder = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
    Some((krate, Some(folder).filter(|folder| !["lib", "main"].contains(folder))))
}

/// The text up to the tests at its end, comments blanked, line numbers kept.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let tests_follow = lines
            .peek()
            .is_some_and(|next| next.starts_with("mod ") && next.trim_end().ends_with('{'));
        if line == "#[cfg(test)]" && tests_follow {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

struct Used {
    name: String,
    line: usize,
}

/// The modules named right after `prefix`, single or in braces; types are not modules.
fn paths(code: &str, prefix: &str) -> Vec<Used> {
    let mut used = Vec::new();
    for (found, _) in code.match_indices(prefix) {
        let before = code[..found].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let start = found + prefix.len();
        if !code[start..].starts_with('{') {
            used.extend(module(code, start));
            continue;
        }
        let mut depth = 0;
        for (offset, c) in code[start..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && (c == '{' || c == ',') {
                used.extend(module(code, start + offset + 1));
            }
        }
    }
    used
}

/// The module whose name stands at `start`, unless it is a type, a function or nothing.
fn module(code: &str, start: usize) -> Option<Used> {
    let path = code[start..].trim_start();
    let start = code.len() - path.len();
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    let (name, rest) = path.split_at(end);
    let is_module = name.starts_with(|c: char| c.is_ascii_lowercase())
        && (rest.starts_with("::") || rest.trim_start().starts_with([',', ';', '}']));
    let line = code[..start].matches('\n').count() + 1;
    is_module.then(|| Used { name: name.to_owned(), line })
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "text\n```arrows\nsimd →\ncore → simd\nserver → core::engine core::text\n\
        core::nn → core::tensor\ncore::tensor →\ncore::engine → core::nn\n```\n";

    fn faults(place: &str, text: &str) -> Vec<String> {
        let arrows = Arrows::read(PAGE).unwrap();
        source(&arrows, place, text).into_iter().map(|fault| fault.at(place)).collect()
    }

    #[test]
    fn an_arrow_that_is_not_drawn_is_found_with_its_line() {
        let place = "crates/base-mlx-core/src/tensor/mod.rs";
        let text = "//! [`crate::engine`] in a comment\nuse crate::TokenId;\nuse crate::{\n    \
            Shape,\n    nn::{Linear, Norm},\n    tensor::Dtype,\n};\n";
        assert_eq!(
            faults(place, text),
            [format!("{place}:5: ARCHITECTURE.md draws no arrow core::tensor → core::nn")]
        );
    }

    #[test]
    fn drawn_arrows_the_own_folder_and_tests_are_fine() {
        let place = "crates/base-mlx-core/src/nn/linear.rs";
        let text = "use crate::nn::Part;\nuse crate::tensor::Tensor;\n#[cfg(test)]\nmod tests {\n    \
            use crate::engine::Engine;\n}\n";
        assert_eq!(faults(place, text), [""; 0]);
    }

    #[test]
    fn a_crate_uses_only_the_folders_drawn() {
        let place = "crates/base-mlx-server/src/routes/chat.rs";
        let text = "use base_mlx_core::{TokenId, engine::Engine, nn::Linear};\n";
        assert_eq!(
            faults(place, text),
            [format!("{place}:1: ARCHITECTURE.md draws no arrow server → core::nn")]
        );
    }

    #[test]
    fn a_dependency_between_crates_needs_an_arrow() {
        let arrows = Arrows::read(PAGE).unwrap();
        let manifest = "[package]\nname = \"base-mlx-core\"\n\n[dependencies]\n\
            base-mlx-simd.workspace = true\nbase-mlx-server.workspace = true\n";
        let found: Vec<_> = dependencies(&arrows, manifest).map(|fault| fault.at("m")).collect();
        assert_eq!(found, ["m:6: ARCHITECTURE.md draws no arrow core → server"]);
    }

    #[test]
    fn long_files_and_names_that_say_nothing_are_found() {
        let place = "crates/base-mlx-core/src/nn/utils.rs";
        let found = faults(place, &"fn f() {}\n".repeat(MOST_LINES + 1));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("601 lines without tests"), "{found:?}");
    }

    #[test]
    fn leftovers_are_found_in_tests_too() {
        let text = concat!("#[cfg(test)]\nmod tests {\n    #[test]\n    #[", "ignore]\n}\n");
        let found = faults("crates/base-mlx-core/tests/ops.rs", text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(":4: "), "{found:?}");
    }
}
