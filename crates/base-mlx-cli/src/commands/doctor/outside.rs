use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use base_mlx_core::store::StoreOptions;

use super::Report;
use crate::config::ConfigFile;

/// What pulls would use. Nobody is asked whether it answers.
pub(super) fn look_at_sources(options: &StoreOptions, report: &mut Report) {
    let endpoint = without_password(&options.hub_endpoint);
    if options.hub_offline {
        report.note(format!("HF_HUB_OFFLINE is set: {endpoint} will not be asked for anything"));
    } else {
        report.ok(format!("the hub is {endpoint} (it was not asked)"));
    }
    match &options.hub_token {
        Some(_) => report.ok("there is an access token for it"),
        None => {
            report.note("no access token (HF_TOKEN): private and gated models cannot be pulled")
        }
    }
    let proxies: Vec<_> = PROXIES
        .iter()
        .flat_map(|name| [name.to_string(), name.to_lowercase()])
        .filter_map(|name| Some((std::env::var(&name).ok()?, name)))
        .filter(|(value, _)| !value.is_empty())
        .map(|(value, name)| format!("{name}={}", without_password(&value)))
        .collect();
    match proxies.is_empty() {
        true => report.ok("no proxy is set"),
        false => report.ok(format!("proxies: {}", proxies.join(" "))),
    }
    pip(options, report);
}

fn pip(options: &StoreOptions, report: &mut Report) {
    let python = options.python.display();
    let mut command = Command::new(&options.python);
    let output = command.args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    let trouble = match output {
        Ok(output) if output.status.success() => {
            let version = String::from_utf8_lossy(&output.stdout).into_owned();
            let version = version.split(" from ").next().unwrap_or_default().trim().to_owned();
            report.ok(format!("{python} has {version}"));
            return;
        }
        Ok(_) => "it has no pip".to_owned(),
        Err(error) => error.to_string(),
    };
    report.note(format!(
        "models that are pip packages cannot be pulled: {python}: {trouble} (BASE_MLX_PYTHON names another Python)"
    ));
}

/// Whether `base-mlx serve` would find its port free.
pub(super) fn look_at_port(file: &ConfigFile, report: &mut Report) {
    let set = std::env::var("BASE_MLX_PORT").ok().and_then(|port| port.parse().ok());
    let port = set.or(file.port).unwrap_or(PORT);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Err(error) = TcpListener::bind(address) else {
        report.ok(format!("port {port} is free"));
        return;
    };
    match health(address) {
        Some(health) => {
            let version = health["version"].as_str().unwrap_or("unknown");
            let status = health["status"].as_str().unwrap_or("unknown");
            let loaded = health["loaded"].as_array().map_or(0, Vec::len);
            report.ok(format!(
                "a base-mlx server, version {version}, answers on {address}: {status}, models in memory: {loaded}"
            ));
        }
        None => report.wrong(
            format!("port {port} cannot be used, and no base-mlx server answers there: {error}"),
            "end what has it, or serve on another with --port",
        ),
    }
}

/// What a server of ours says about itself.
fn health(address: SocketAddr) -> Option<serde_json::Value> {
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    connection.set_read_timeout(Some(PATIENCE)).ok()?;
    connection.set_write_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    connection.take(MOST_BYTES).read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let health: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    (health.get("version").is_some() && health.get("loaded").is_some()).then_some(health)
}

/// The address, without who may use it.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let rest = rest.rsplit_once('@').map_or(rest.to_owned(), |(_, host)| format!("…@{host}"));
    if scheme.is_empty() { rest } else { format!("{scheme}://{rest}") }
}

const PROXIES: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];
const PORT: u16 = 11435;
/// A server on this machine answers sooner, or is stuck.
const PATIENCE: Duration = Duration::from_secs(2);
const MOST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let cases = [
            ("http://user:secret@proxy:3128", "http://…@proxy:3128"),
            ("user:se@cret@proxy", "…@proxy"),
            ("https://huggingface.co", "https://huggingface.co"),
            ("localhost,127.0.0.1", "localhost,127.0.0.1"),
        ];
        for (given, shown) in cases {
            assert_eq!(without_password(given), shown);
        }
    }
}
