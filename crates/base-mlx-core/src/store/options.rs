use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Catalogue;

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
    /// `<lm_studio>/<owner>/<name>`. Never written to.
    pub lm_studio: Option<PathBuf>,
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
        Self::from_vars(|name| std::env::var_os(name))
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
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        Self {
            models_dir: path("BASE_MLX_MODELS_DIR"),
            home: path("BASE_MLX_HOME").unwrap_or_else(|| caches.join("base-mlx")),
            hub_cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            hub_endpoint: endpoint.trim_end_matches('/').to_owned(),
            hub_token,
            hub_offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            hub_connections: 8,
            hub_range_bytes: 32 << 20,
            // Some systems read the first themselves, some do not.
            hub_certificates: path("SSL_CERT_FILE")
                .or_else(|| path("REQUESTS_CA_BUNDLE").filter(|path| path.is_file())),
            lm_studio: user_home.as_ref().map(|home| home.join(".lmstudio").join("models")),
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

/// What of the machine a test wants to decide.
pub trait Host: Send + Sync {
    /// Free bytes for this user where `folder` lies, which exists.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
    /// Waits before another try.
    fn pause(&self, time: Duration);
}

/// The real machine.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl Host for System {
    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        fs4::available_space(folder)
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

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
