//! Who may come in: hosts, origins, keys.

use crate::support::{SERVER, TestServer, capital, with};
use serde_json::json;

#[test]
fn a_foreign_host_name_is_refused() {
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0"] {
        let error = SERVER.send("GET", "/v1/models", &[("Host", host)], b"").error(403);
        assert_eq!(error["code"], "host_not_allowed");
    }
    for host in ["localhost", "localhost:1", "127.0.0.1", "[::1]:11435", "LOCALHOST"] {
        SERVER.send("GET", "/v1/models", &[("Host", host)], b"").ok();
    }
    for second in ["evil.example", "localhost"] {
        let headers = [("Host", "localhost"), ("Host", second)];
        SERVER.send("GET", "/v1/models", &headers, b"").error(400);
    }
    let server = TestServer::start(|options| options.allow_hosts = vec!["box.lan".into()]);
    server.send("GET", "/health", &[("Host", "box.lan:80")], b"").ok();
    server.send("GET", "/health", &[("Host", "other.lan")], b"").error(403);
}

#[test]
fn point_59_no_page_of_another_origin_can_read_unless_it_is_listed() {
    let preflight = [
        ("Origin", "https://page.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ];
    let named = |headers: &[(String, String)]| {
        headers.iter().any(|(name, _)| name.starts_with("access-control-"))
    };
    let reply = SERVER.send("GET", "/v1/models", &preflight[..1], b"");
    assert!(reply.status == 200 && !named(&reply.headers));
    assert!(!named(&SERVER.send("OPTIONS", "/v1/chat/completions", &preflight, b"").headers));

    let server = TestServer::start(|options| options.cors = vec!["https://page.example".into()]);
    let reply = server.send("GET", "/v1/models", &preflight[..1], b"");
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://page.example"));
    assert_eq!(reply.header("vary"), Some("origin"));
    let reply = server.send("OPTIONS", "/v1/chat/completions", &preflight, b"");
    assert_eq!(reply.status, 204);
    assert_eq!(reply.header("access-control-allow-headers"), Some("content-type"));
    assert!(reply.header("access-control-allow-methods").unwrap().contains("POST"));
    // Errors can be read, too.
    let reply = server.send("GET", "/v1/nothing", &preflight[..1], b"");
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://page.example"));
    for other in ["https://page.example.evil", "http://page.example", "null"] {
        let reply = server.send("GET", "/v1/models", &[("Origin", other)], b"");
        assert!(!named(&reply.headers), "{other}");
    }
}

#[test]
fn a_form_of_a_foreign_page_is_refused() {
    let body = with(capital(), json!({ "model": "smollm2", "max_tokens": 1 })).to_string();
    let send = |origin: &str, kind: &str| {
        let headers = [("Origin", origin), ("Content-Type", kind)];
        SERVER.send("POST", "/v1/chat/completions", &headers, body.as_bytes())
    };
    assert_eq!(send("https://page.example", "text/plain").error(403)["code"], "origin_not_allowed");
    send("http://localhost:3000", "text/plain").ok();
    // With this type a browser asks first.
    send("https://page.example", "application/json").ok();
}

#[test]
fn a_key_lets_in() {
    let server =
        TestServer::start(|options| options.api_keys = vec!["first".into(), "second".into()]);
    let get = |path: &str, key: Option<&str>| {
        let value = key.unwrap_or_default();
        let headers = [("Authorization", value)];
        server.send("GET", path, if key.is_some() { &headers } else { &[] }, b"")
    };
    for wrong in [None, Some("Bearer third"), Some("Bearer "), Some("first"), Some("Basic first")] {
        let reply = get("/v1/models", wrong);
        assert_eq!(reply.error(401)["code"], "invalid_api_key");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        get("/v1/nothing", wrong).error(401);
    }
    get("/v1/models", Some("Bearer first")).ok();
    get("/v1/models", Some("bearer second")).ok();
    get("/health", None).ok();
}
