use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Catalogue, folders};

/// Everything a store uses from the world around it. Nothing below reads the environment.
#[derive(Clone)]
pub struct StoreOptions {
    /// `--models-dir`: models under their own file and folder names. Never written to.
    pub models_dir: Option<PathBuf>,
    /// Where models lie that did not come from the hub: `<home>/models/…`.
    pub home: PathBuf,
    /// The cache folder shared with Hugging Face's own tools: `models--owner--name/…`.
    pub hub_cache: PathBuf,
    pub hub_endpoint: String,
    pub hub_token: Option<String>,
    pub hub_offline: bool,
    /// How many transfers a pull has under way at once, over all its files.
    pub hub_connections: usize,
    /// Larger files are fetched in pieces of this length, several at once.
    pub hub_range_bytes: u64,
    /// A PEM file of certificates to trust beside the system's.
    pub hub_certificates: Option<PathBuf>,
    /// LM Studio's usual folder, `<lm_studio>/<owner>/<name>`.
    pub lm_studio: Option<PathBuf>,
    /// The folder that its settings name, and that of its old versions.
    pub lm_studio_others: Vec<PathBuf>,
    /// llama.cpp's own cache.
    pub llama_cpp: Option<PathBuf>,
    /// Folders of Ollama's, with `manifests` and `blobs` in them.
    pub ollama: Vec<PathBuf>,
    /// Folders of other tools that a variable or a setting names, and what names them: these should be there.
    pub named: BTreeMap<PathBuf, &'static str>,
    /// What `~/` stands for in a name.
    pub user_home: Option<PathBuf>,
    /// The Python whose pip fetches packages.
    pub python: PathBuf,
    /// Whether the system's proxy settings are for the hub, too.
    pub system_proxy: bool,
    pub connect_timeout: Duration,
    /// How long the hub may stay silent. There is no limit on a whole download.
    pub idle_timeout: Duration,
    pub catalogue: Catalogue,
    pub host: Arc<dyn Host>,
}

impl StoreOptions {
    pub fn from_env() -> Self {
        let mut options = Self::from_vars(|name| std::env::var_os(name));
        let named = std::env::var_os("OLLAMA_MODELS").is_some_and(|value| !value.is_empty());
        if cfg!(target_os = "linux") && !named {
            // Where its service keeps them.
            options.ollama.push(PathBuf::from("/usr/share/ollama/.ollama/models"));
        }
        options
    }

    /// The same from any source of variables. Empty ones count as absent.
    pub fn from_vars(vars: impl Fn(&str) -> Option<OsString>) -> Self {
        let var = |name: &str| vars(name).filter(|value| !value.is_empty());
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let user_home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| var(name).map(|value| expand(PathBuf::from(value), &user_home));
        let base = user_home.clone().unwrap_or_else(std::env::temp_dir);
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| base.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let hub_token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| fs::read_to_string(token_file).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let (lm_studio, lm_studio_others, lm_studio_named) = match &user_home {
            Some(home) => lm_studio(home),
            None => (None, Vec::new(), Vec::new()),
        };
        let hub_named = path("HF_HUB_CACHE").map(|folder| (folder, "HF_HUB_CACHE"));
        let hub_named = hub_named.or_else(|| {
            path("HUGGINGFACE_HUB_CACHE").map(|folder| (folder, "HUGGINGFACE_HUB_CACHE"))
        });
        let named = ["OLLAMA_MODELS", "LLAMA_CACHE"]
            .into_iter()
            .filter_map(|name| Some((path(name)?, name)))
            .chain(lm_studio_named.into_iter().map(|folder| (folder, "LM Studio's settings.json")))
            .chain(hub_named.clone())
            .collect();
        let ollama = path("OLLAMA_MODELS")
            .or_else(|| user_home.as_ref().map(|home| home.join(".ollama").join("models")));
        let llama_cpp = path("LLAMA_CACHE").or_else(|| {
            let caches = match path("XDG_CACHE_HOME") {
                None if cfg!(target_os = "macos") => user_home.as_ref()?.join("Library/Caches"),
                _ => caches.clone(),
            };
            Some(caches.join("llama.cpp"))
        });
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        Self {
            models_dir: path("BASE_MLX_MODELS_DIR"),
            home: path("BASE_MLX_HOME").unwrap_or_else(|| caches.join("base-mlx")),
            hub_cache: hub_named.map_or_else(|| hf_home.join("hub"), |(folder, _)| folder),
            hub_endpoint: endpoint.trim_end_matches('/').to_owned(),
            hub_token,
            hub_offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            hub_connections: 8,
            hub_range_bytes: 32 << 20,
            // Some systems read the first themselves, some do not.
            hub_certificates: path("SSL_CERT_FILE")
                .or_else(|| path("REQUESTS_CA_BUNDLE").filter(|path| path.is_file())),
            lm_studio,
            lm_studio_others,
            llama_cpp,
            ollama: ollama.into_iter().collect(),
            named,
            python: path("BASE_MLX_PYTHON").unwrap_or_else(|| PathBuf::from("python3")),
            user_home,
            system_proxy: true,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            catalogue: Catalogue::built_in(),
            host: Arc::new(System),
        }
    }
}

/// Where LM Studio keeps models: its usual folder, and others, and which of these its settings name. A file in the user's
/// home may name another home of its, and the settings there another folder for models.
fn lm_studio(user_home: &Path) -> (Option<PathBuf>, Vec<PathBuf>, Vec<PathBuf>) {
    let pointer = folders::read_small(&user_home.join(".lmstudio-home-pointer"), MOST_BYTES);
    let pointer = String::from_utf8(pointer.unwrap_or_default()).unwrap_or_default();
    let pointer = pointer.lines().next().map(str::trim).filter(|line| !line.is_empty());
    let user = Some(user_home.to_owned());
    let pointed =
        pointer.map(|line| expand(PathBuf::from(line), &user)).filter(|path| path.is_dir());
    let home = pointed.unwrap_or_else(|| user_home.join(".lmstudio"));
    let old = user_home.join(".cache/lm-studio");
    let usual = home.join("models");
    let named: Vec<PathBuf> = [home, old.clone(), user_home.join(".config/LM Studio")]
        .into_iter()
        .filter_map(|home| downloads_folder(&home.join("settings.json")))
        .map(|named| expand(named, &user))
        .collect();
    let mut others: Vec<PathBuf> = Vec::new();
    let former = [user_home.join(".lmstudio/models"), old.join("models")];
    for folder in named.iter().cloned().chain(former) {
        if folder != usual && !others.contains(&folder) {
            others.push(folder);
        }
    }
    (Some(usual), others, named)
}

fn downloads_folder(settings: &Path) -> Option<PathBuf> {
    let settings = folders::read_small(settings, MOST_BYTES).ok()?;
    let settings: serde_json::Value = serde_json::from_slice(&settings).ok()?;
    let folder = settings.get("downloadsFolder")?.as_str().filter(|folder| !folder.is_empty())?;
    Some(PathBuf::from(folder))
}

/// What of the machine a test wants to decide.
pub trait Host: Send + Sync {
    /// Free bytes for this user where `folder` lies, which exists.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
    /// Waits before another try, and no longer when that has become needless.
    fn pause(&self, time: Duration, is_needless: &dyn Fn() -> bool);
}

/// The real machine.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl Host for System {
    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        fs4::available_space(folder)
    }

    fn pause(&self, time: Duration, is_needless: &dyn Fn() -> bool) {
        let end = Instant::now() + time;
        while !is_needless()
            && let Some(rest) = end.checked_duration_since(Instant::now())
        {
            std::thread::sleep(rest.min(GLANCE));
        }
    }
}

/// How often one who waits looks whether there is still a reason to.
pub(super) const GLANCE: Duration = Duration::from_millis(50);

/// `~/x` within the user's home.
pub(super) fn expand(path: PathBuf, user_home: &Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), user_home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
}

const HUB: &str = "https://huggingface.co";
/// Of a tool's settings.
const MOST_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> StoreOptions {
        StoreOptions::from_vars(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn folders_follow_the_variables_of_hugging_faces_tools() {
        let plain = options(&[("HOME", "/h"), ("HF_HOME", "")]);
        assert_eq!(plain.hub_cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(plain.home, Path::new("/h/.cache/base-mlx"));
        assert_eq!(plain.lm_studio.as_deref(), Some(Path::new("/h/.lmstudio/models")));
        assert_eq!(plain.hub_endpoint, "https://huggingface.co");
        assert!(!plain.hub_offline);

        let xdg = options(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]);
        assert_eq!(xdg.hub_cache, Path::new("/x/huggingface/hub"));
        assert_eq!(xdg.home, Path::new("/x/base-mlx"));

        let home = options(&[("HOME", "/h"), ("HF_HOME", "~/hf"), ("HF_HUB_OFFLINE", "True")]);
        assert_eq!(home.hub_cache, Path::new("/h/hf/hub"));
        assert!(home.hub_offline);

        let cache = options(&[("HF_HUB_CACHE", "/c"), ("HF_ENDPOINT", "http://mirror/")]);
        assert_eq!(cache.hub_cache, Path::new("/c"));
        assert_eq!(cache.hub_certificates, None);
        let own = options(&[("SSL_CERT_FILE", "/ca.pem"), ("REQUESTS_CA_BUNDLE", "/other.pem")]);
        assert_eq!(own.hub_certificates.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(cache.hub_endpoint, "http://mirror");
    }

    #[test]
    fn folders_of_other_tools_are_those_that_they_use() {
        let path = |path: &str| Some(PathBuf::from(path));
        let plain = options(&[("HOME", "/h")]);
        assert_eq!(plain.ollama, [Path::new("/h/.ollama/models")]);
        assert_eq!(plain.lm_studio_others, [Path::new("/h/.cache/lm-studio/models")]);
        if cfg!(not(target_os = "macos")) {
            assert_eq!(plain.llama_cpp, path("/h/.cache/llama.cpp"));
        }
        let set = options(&[
            ("HOME", "/h"),
            ("OLLAMA_MODELS", "/o"),
            ("XDG_CACHE_HOME", "/x"),
            ("LLAMA_CACHE", ""),
        ]);
        assert_eq!(set.ollama, [Path::new("/o")]);
        assert_eq!(set.llama_cpp, path("/x/llama.cpp"));
        assert_eq!(options(&[("HOME", "/h"), ("LLAMA_CACHE", "~/l")]).llama_cpp, path("/h/l"));
    }

    #[test]
    fn lm_studios_settings_name_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path();
        let moved = home.join("moved");
        fs::create_dir(&moved).unwrap();
        let named = |options: &StoreOptions| {
            let other = options.lm_studio_others.first().cloned();
            (options.lm_studio.clone().unwrap(), other.unwrap())
        };
        let found = || named(&options(&[("HOME", home.to_str().unwrap())]));
        let old = home.join(".cache/lm-studio/models");
        assert_eq!(found(), (home.join(".lmstudio/models"), old));
        fs::write(home.join(".lmstudio-home-pointer"), format!("{}\n", moved.display())).unwrap();
        assert_eq!(found(), (moved.join("models"), home.join(".lmstudio/models")));
        let settings = r#"{"downloadsFolder": "~/big", "language": "en"}"#;
        fs::write(moved.join("settings.json"), settings).unwrap();
        assert_eq!(found(), (moved.join("models"), home.join("big")));
        fs::write(home.join(".lmstudio-home-pointer"), "/gone").unwrap();
        assert_eq!(found().0, home.join(".lmstudio/models"));
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let of = |vars: &[(&str, &str)]| options(vars).hub_token;
        assert_eq!(of(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        assert_eq!(of(&[("HF_HOME", home), ("HF_TOKEN", " hf_var ")]).as_deref(), Some("hf_var"));
        assert_eq!(of(&[("HF_HOME", "/nowhere")]), None);
    }
}
