use std::io::Read;
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::super::digest::Digest;
use super::super::name::{HubName, is_relative};
use super::super::{Host, StoreError, StoreOptions};
use super::client;
use super::lanes::{Lane, Lanes};

/// The hub's HTTP interface, for one repository.
pub(super) struct Hub<'a> {
    options: &'a StoreOptions,
    client: Client,
    endpoint: Url,
    name: &'a HubName,
    pub(super) lanes: Lanes,
}

/// A revision of a repository, as the hub lists it.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) size: Option<u64>,
    digest: Option<Digest>,
}

/// What a download is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// The blob's name in the cache.
    pub(super) etag: String,
    pub(super) size: u64,
    pub(super) digest: Option<Digest>,
    /// Whether the hub says that it gives no parts of it. Most say nothing, and one has to try.
    pub(super) is_indivisible: bool,
}

impl<'a> Hub<'a> {
    pub(super) fn new(options: &'a StoreOptions, name: &'a HubName) -> Result<Self, StoreError> {
        if options.hub_offline {
            return Err(StoreError::Offline { repo: name.to_string() });
        }
        let endpoint = Url::parse(&options.hub_endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| StoreError::Unreachable {
                host: options.hub_endpoint.clone(),
                why: "it is not an http(s) address".to_owned(),
            })?;
        let client = client::new(options)?;
        Ok(Self { options, client, endpoint, name, lanes: Lanes::new(options.hub_connections) })
    }

    /// All files of the revision.
    pub(super) fn listing(&self) -> Result<Listing, StoreError> {
        let mut url = self.url(&["api", "models"], &self.name.repo);
        push(&mut url, &["revision", self.name.revision()]);
        url.set_query(Some("blobs=true"));
        let mut patience = self.patience();
        let text = loop {
            let text = self.get(&url, &[]).and_then(|mut answer| {
                let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
                while text.len() < MAX_LISTING_BYTES {
                    match self.read(&mut answer, &mut buffer)? {
                        0 => break,
                        count => text.extend(&buffer[..count]),
                    }
                }
                Ok(text)
            });
            match text {
                Ok(text) => break text,
                Err(failure) => patience.wait(failure, || false)?,
            }
        };
        let listing: ListingJson = serde_json::from_slice(&text)
            .map_err(|error| self.nonsense(format!("its list of files is not one: {error}")))?;
        if !is_plain(&listing.sha) {
            return Err(self.nonsense(format!("`{}` is not a commit", listing.sha)));
        }
        let mut files = Vec::new();
        for file in listing.siblings {
            if !is_relative(&file.rfilename) {
                return Err(self.nonsense(format!(
                    "`{}` leads outside of the repository",
                    file.rfilename.escape_debug()
                )));
            }
            let etag = file.lfs.map(|lfs| lfs.sha256).or(file.blob_id);
            let digest = etag.and_then(|etag| Digest::of_etag(&etag));
            files.push(RemoteFile { path: file.rfilename, size: file.size, digest });
        }
        Ok(Listing { commit: listing.sha, files })
    }

    /// What the hub says of a file at a commit, without its content.
    pub(super) fn metadata(&self, commit: &str, file: &RemoteFile) -> Result<Metadata, StoreError> {
        let url = self.file_url(commit, &file.path);
        let mut patience = self.patience();
        let answer = loop {
            match self.send(Method::HEAD, &url, &[], Redirects::WithinOrigin) {
                Ok(answer) => break answer,
                Err(failure) => patience.wait(failure, || false)?,
            }
        };
        let headers = answer.response.headers();
        if let Some(found) = text(headers, "x-repo-commit").filter(|found| *found != commit) {
            return Err(
                self.nonsense(format!("`{}` is of commit {found}, not {commit}", file.path))
            );
        }
        let etag = answer.linked_etag.as_deref().or_else(|| text(headers, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let etag = etag.filter(|etag| is_plain(etag));
        let etag = etag.or_else(|| Some(file.digest.as_ref()?.hex().to_owned()));
        let etag =
            etag.ok_or_else(|| self.nonsense(format!("`{}` has no usable ETag", file.path)))?;
        let number = |name| text(headers, name)?.parse::<u64>().ok();
        let linked = number("x-linked-size");
        let size = linked.or(file.size).or_else(|| number("content-length"));
        let size = size.ok_or_else(|| {
            self.nonsense(format!("it does not say how large `{}` is", file.path))
        })?;
        if let Some(listed) = file.size.filter(|&listed| listed != size) {
            let (expected, found) = (listed.to_string(), size.to_string());
            return Err(StoreError::Corrupt {
                file: file.path.clone(),
                what: "its size",
                expected,
                found,
            });
        }
        // A digest in the list stands above what is said of the single file.
        let digest = file.digest.clone().or_else(|| Digest::of_etag(&etag));
        let is_indivisible = text(headers, "accept-ranges") == Some("none");
        Ok(Metadata { etag, size, digest, is_indivisible })
    }

    pub(super) fn file_url(&self, commit: &str, path: &str) -> Url {
        let mut url = self.url(&[], &self.name.repo);
        push(&mut url, &["resolve", commit]);
        path.split('/').for_each(|part| push(&mut url, &[part]));
        url
    }

    /// GET, wherever it leads. The token goes to the hub alone.
    pub(super) fn get(&self, url: &Url, headers: &[Header]) -> Result<Answer<'_>, Failure> {
        self.send(Method::GET, url, headers, Redirects::Anywhere)
    }

    pub(super) fn patience(&self) -> Patience<'_> {
        Patience { host: &*self.options.host, lanes: &self.lanes, failures: 0 }
    }

    /// The next bytes of an answer, or 0 at its end.
    pub(super) fn read(&self, answer: &mut Answer, buffer: &mut [u8]) -> Result<usize, Failure> {
        let count = answer.response.read(buffer).map_err(|error| self.broken(&error))?;
        answer.lately += count;
        let time = self.options.idle_timeout;
        if count > 0 && answer.since.elapsed() > time {
            if answer.lately < LEAST_BYTES {
                let what = format!("only {} bytes came in {} s", answer.lately, time.as_secs_f32());
                return Err(Failure { error: self.nonsense(what), retry: Retry::Soon });
            }
            (answer.since, answer.lately) = (Instant::now(), 0);
        }
        Ok(count)
    }

    pub(super) fn nonsense(&self, what: String) -> StoreError {
        StoreError::Http { host: self.host(), what }
    }

    /// Nobody reads this: the file that failed has said why.
    pub(super) fn in_vain(&self) -> Failure {
        self.nonsense("another file failed".to_owned()).into()
    }

    /// A connection that breaks may hold the next time.
    pub(super) fn broken(&self, error: &dyn std::error::Error) -> Failure {
        let what = format!("the connection broke: {}", reason(error));
        Failure { error: self.nonsense(what), retry: Retry::Soon }
    }

    fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &[Header],
        redirects: Redirects,
    ) -> Result<Answer<'_>, Failure> {
        let lane = self.lanes.take();
        if self.lanes.has_failed() {
            return Err(self.in_vain());
        }
        let answer = |response, at_hub, linked_etag| Answer {
            response,
            at_hub,
            linked_etag,
            since: Instant::now(),
            lately: 0,
            _lane: lane,
        };
        let mut url = url.clone();
        let mut at_hub = true;
        let mut linked_etag = None;
        for _ in 0..MAX_REDIRECTS {
            at_hub &= url.origin() == self.endpoint.origin();
            let mut request = self.client.request(method.clone(), url.clone());
            // Sizes and ranges are those of the file, not of a packed form.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            for (name, value, to) in headers {
                if at_hub || *to == To::Anybody {
                    request = request.header(name, value);
                }
            }
            if let Some(token) = self.options.hub_token.as_ref().filter(|_| at_hub) {
                request = request.bearer_auth(token);
            }
            let response = request.send().map_err(|error| self.unreachable(&url, error))?;
            if at_hub && let Some(etag) = text(response.headers(), "x-linked-etag") {
                linked_etag = Some(etag.to_owned());
            }
            if !response.status().is_redirection() {
                let response = self.judge(response, at_hub)?;
                return Ok(answer(response, at_hub, linked_etag));
            }
            let next = text(response.headers(), "location").and_then(|to| url.join(to).ok());
            let next = next.filter(|next| {
                let downgrade = url.scheme() == "https" && next.scheme() != "https";
                matches!(next.scheme(), "http" | "https") && !downgrade
            });
            let Some(next) = next else {
                let error =
                    self.nonsense("it redirects to nowhere, or to an unsafe place".to_owned());
                return Err(Failure { error, retry: Retry::Never });
            };
            if redirects == Redirects::WithinOrigin && next.origin() != self.endpoint.origin() {
                return Ok(answer(response, at_hub, linked_etag));
            }
            url = next;
        }
        let error = self.nonsense(format!("more than {MAX_REDIRECTS} redirects"));
        Err(Failure { error, retry: Retry::Never })
    }

    /// Turns a status that is of no use into a failure.
    fn judge(&self, response: Response, at_hub: bool) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let repo = self.name.repo.clone();
        let code = status.as_u16();
        let kind = text(response.headers(), "x-error-code").unwrap_or_default();
        let after = text(response.headers(), "retry-after").and_then(|text| text.parse().ok());
        let later = after.map_or(Retry::Soon, |s| Retry::After(Duration::from_secs(s)));
        let with_status = |what: &str| self.nonsense(format!("{what} (status {code})"));
        let (error, retry) = match code {
            // Links to storage expire; the hub gives a fresh one.
            _ if !at_hub => (with_status("the storage it redirects to refuses"), later),
            401 | 403 => {
                let token_sent = self.options.hub_token.is_some();
                let host = self.host();
                (StoreError::Denied { host, repo, status: code, token_sent }, Retry::Never)
            }
            404 => {
                let (what, hint) = match (kind, &self.name.revision) {
                    ("RevisionNotFound", _) | (_, Some(_)) => (
                        format!("{repo}@{}", self.name.revision()),
                        "\nhint: is the revision right?",
                    ),
                    _ => (repo, "\nhint: a hub id is `owner/name`, with capitals as on its page"),
                };
                let error = StoreError::Missing { host: self.host(), what, hint: hint.to_owned() };
                (error, Retry::Never)
            }
            408 | 429 | 500.. => {
                let what = match code {
                    429 => "too many requests",
                    _ => status.canonical_reason().unwrap_or("it fails"),
                };
                (with_status(what), later)
            }
            _ => (with_status("an unexpected answer"), Retry::Never),
        };
        Err(Failure { error, retry })
    }

    fn unreachable(&self, url: &Url, error: reqwest::Error) -> Failure {
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        // Addresses of storage carry signatures: not for logs.
        let is_connect = error.is_connect();
        let why = reason(&error.without_url());
        let retry = if is_connect { Retry::Once } else { Retry::Soon };
        Failure { error: StoreError::Unreachable { host, why }, retry }
    }

    fn host(&self) -> String {
        let host = self.endpoint.host_str().unwrap_or_default();
        self.endpoint.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))
    }

    fn url(&self, prefix: &[&str], repo: &str) -> Url {
        let mut url = self.endpoint.clone();
        push(&mut url, prefix);
        repo.split('/').for_each(|part| push(&mut url, &[part]));
        url
    }
}

impl RemoteFile {
    /// The blob's name in the cache, as far as the list tells.
    pub(super) fn etag(&self) -> Option<&str> {
        self.digest.as_ref().map(Digest::hex)
    }

    #[cfg(test)]
    pub(super) fn new(path: &str, size: Option<u64>) -> Self {
        Self { path: path.to_owned(), size, digest: None }
    }
}

pub(super) type Header = (HeaderName, HeaderValue, To);

/// Who may see a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Hub,
    Anybody,
}

pub(super) struct Answer<'a> {
    pub(super) response: Response,
    /// Whether the hub itself answered, not a storage it redirects to.
    pub(super) at_hub: bool,
    /// What the hub itself calls the content, if it says, perhaps as it redirects.
    pub(super) linked_etag: Option<String>,
    /// Bytes that came since then.
    lately: usize,
    since: Instant,
    _lane: Lane<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirects {
    Anywhere,
    /// The answer that leads to another origin is the one that is wanted.
    WithinOrigin,
}

/// An attempt that came to nothing, and whether another one makes sense.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    pub(super) retry: Retry,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, retry: Retry::Never }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// No way there: another source may be better.
    Once,
    Soon,
    After(Duration),
}

/// Counts failures in a row, and waits longer after each.
pub(super) struct Patience<'a> {
    host: &'a dyn Host,
    lanes: &'a Lanes,
    failures: u32,
}

impl Patience<'_> {
    /// Waits before the next attempt, or gives the error back when there should be none: also when the pull has failed
    /// elsewhere, or `is_over` says so.
    pub(super) fn wait(
        &mut self,
        failure: Failure,
        is_over: impl Fn() -> bool,
    ) -> Result<(), StoreError> {
        self.failures += 1;
        let backoff = Duration::from_millis(500) * 2_u32.saturating_pow(self.failures - 1);
        let time = match failure.retry {
            Retry::Never => return Err(failure.error),
            Retry::Once if self.failures > 1 => return Err(failure.error),
            _ if self.failures >= MAX_ATTEMPTS => return Err(failure.error),
            Retry::After(time) if time > MAX_PAUSE => return Err(failure.error),
            Retry::After(time) => time.max(backoff.min(MAX_PAUSE)),
            Retry::Once | Retry::Soon => backoff.min(MAX_PAUSE),
        };
        let is_needless = || self.lanes.has_failed() || is_over();
        self.host.pause(time, &is_needless);
        if is_needless() { Err(failure.error) } else { Ok(()) }
    }

    /// Enough arrived to call the next failure the first one.
    pub(super) fn renew(&mut self) {
        self.failures = 0;
    }
}

#[derive(Deserialize)]
struct ListingJson {
    sha: String,
    #[serde(default)]
    siblings: Vec<SiblingJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SiblingJson {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LfsJson>,
}

#[derive(Deserialize)]
struct LfsJson {
    sha256: String,
}

fn push(url: &mut Url, parts: &[&str]) {
    url.path_segments_mut().expect("an http address has a path").pop_if_empty().extend(parts);
}

pub(super) fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Whether foreign text may be one file's name.
fn is_plain(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// An error with its causes, which is where libraries put what happened.
pub(super) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

const MAX_ATTEMPTS: u32 = 5;
const MAX_PAUSE: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 10;
const MAX_LISTING_BYTES: usize = 64 << 20;
/// What must come within the time of silence that is allowed. A connection that gives a byte now and then is none.
const LEAST_BYTES: usize = 1024;
