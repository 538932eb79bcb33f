use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;

/// A web page can make its own name resolve to 127.0.0.1 and then read what it finds there, but it cannot change the
/// `Host` header that names it. So only loopback names and those the operator listed are served.
#[derive(Debug)]
pub(crate) struct Hosts {
    any: bool,
    names: Vec<String>,
}

impl Hosts {
    /// `bound` is the host the server listens on: an address chosen by the operator is a name of the server, unless
    /// it means all addresses.
    pub(crate) fn new(bound: &str, allowed: &[String]) -> Self {
        let mut names: Vec<String> = allowed.iter().map(|name| plain_name(name)).collect();
        if !bound.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
            names.push(plain_name(bound));
        }
        Self { any: allowed.iter().any(|name| name == "*"), names }
    }

    pub(crate) fn allows(&self, authority: &str) -> bool {
        if self.any {
            return true;
        }
        let Some(name) = without_port(authority) else { return false };
        let name = plain_name(name);
        let loopback = name == "localhost"
            || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        loopback || self.names.contains(&name)
    }
}

pub(crate) async fn check(
    State(hosts): State<Arc<Hosts>>,
    request: Request,
    next: Next,
) -> Response {
    // Which of them counts is read differently from program to program, so none does.
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        let message = "the request has more than one Host header".into();
        return ApiError::Invalid { param: None, message }.into_response();
    }
    // HTTP/2 has the authority in the URI, HTTP/1 in the header.
    let header = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or(""));
    let authority =
        header.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    if authority.is_some_and(|authority| hosts.allows(authority)) {
        return next.run(request).await;
    }
    let named = authority.unwrap_or("none");
    ApiError::Forbidden {
        code: "host_not_allowed",
        message: format!(
            "the request's Host header is {named:?}, which is not a name of this server\n\
             hint: start the server with `--allow-host` and the name"
        ),
    }
    .into_response()
}

/// `[::1]:80`, `::1`, `name:80` and `name` without the port; `None` if what looks like a port is none.
fn without_port(authority: &str) -> Option<&str> {
    let (name, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (name, rest) = rest.split_once(']')?;
        (name, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else if authority.matches(':').count() > 1 {
        (authority, None)
    } else {
        match authority.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (authority, None),
        }
    };
    let port_is_sound = port.is_none_or(|port| port.is_empty() || port.parse::<u16>().is_ok());
    (port_is_sound && !name.is_empty()).then_some(name)
}

fn plain_name(name: &str) -> String {
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names_pass_in_every_spelling() {
        let hosts = Hosts::new("127.0.0.1", &[]);
        for name in [
            "localhost",
            "localhost:11435",
            "LocalHost.",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.3.2.1",
            "[::1]",
            "[::1]:11435",
            "::1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(hosts.allows(name), "{name}");
        }
    }

    #[test]
    fn foreign_names_and_odd_spellings_are_refused() {
        let hosts = Hosts::new("127.0.0.1", &["box.lan".into()]);
        for name in [
            "",
            ":80",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "0.0.0.0",
            "2130706433",
            "127.1",
            "[::1]evil",
            "[::1",
            "localhost:port",
            "localhost:80:80",
            "user@localhost",
            "192.168.1.2",
            "box.lan.evil.example",
        ] {
            assert!(!hosts.allows(name), "{name}");
        }
    }

    #[test]
    fn listed_names_and_the_bound_address_pass() {
        let hosts = Hosts::new("192.168.1.2", &["Box.lan".into(), "[fe80::2]".into()]);
        for name in ["box.lan", "BOX.LAN:8080", "192.168.1.2:11435", "[fe80::2]:1"] {
            assert!(hosts.allows(name), "{name}");
        }
        assert!(!Hosts::new("0.0.0.0", &[]).allows("0.0.0.0"));
        assert!(Hosts::new("0.0.0.0", &["*".into()]).allows("anything"));
    }
}
