//! The way to the hub: proxies, certificates, redirects.

use std::path::{Path, PathBuf};
use std::process::Command;

use base_mlx_core::store::{Silent, StoreError};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::server::{Reply, Repo, Request, Server};
use crate::{Hub, World, child};

/// Of `hub.example` and `127.0.0.1`, signed by an authority that no machine trusts. Both last until 2126, and the
/// authority's key is nowhere.
fn certificate(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/certificates").join(file)
}

fn tls() -> ServerConfig {
    let provider = rustls::crypto::ring::default_provider().into();
    let chain = CertificateDer::from_pem_file(certificate("hub.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificate("hub-key.pem")).unwrap();
    let versions =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    versions.unwrap().with_no_client_auth().with_single_cert(vec![chain], key).unwrap()
}

/// Hub and storage in one, reached as `url`.
fn both(repo: &Repo, request: &Request, url: &str) -> Reply {
    match request.path.matches('/').count() {
        1 => repo.stored(request),
        _ => repo.answer(request, url),
    }
}

fn secure_hub() -> Server {
    let repo = Repo::tiny();
    // The storage's address is where the request came to.
    Server::start_tls(tls(), move |request| {
        both(&repo, request, &format!("https://{}", request.header("host").unwrap()))
    })
}

fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or(text.into_owned())
}

#[test]
fn a_private_repository_opens_to_the_token_of_the_variable_or_of_the_file() {
    let repo = Repo::tiny();
    let private = |r: &Request| {
        let is_known = r.header("authorization") == Some("Bearer hf_mine");
        (!is_known).then(|| Reply::new(401, "").with("X-Error-Code", "GatedRepo"))
    };
    let hub = Hub::tricky(&repo, Box::new(private), Box::new(|_| None));
    let world = hub.world();
    let error = succeeds(&mut child::pull(&world)).unwrap_err();
    assert!(error.contains("(status 401)") && error.contains("set HF_TOKEN"), "{error}");
    let error = succeeds(child::pull(&world).env("HF_TOKEN", "hf_other")).unwrap_err();
    assert!(error.contains("accept the terms") && !error.contains("hf_other"), "{error}");
    let error = succeeds(child::pull(&world).env("HF_HUB_OFFLINE", "1")).unwrap_err();
    assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
    succeeds(child::pull(&world).env("HF_TOKEN", "hf_mine")).unwrap();

    let world = hub.world();
    world.write(".cache/huggingface/token", "hf_mine\n");
    succeeds(&mut child::pull(&world)).unwrap();
    assert!(world.store().find("owner/tiny").is_ok());
}

#[test]
fn a_proxy_of_the_system_is_used_unless_the_hub_is_an_exception() {
    let repo = Repo::tiny();
    let proxied = repo.clone();
    let proxy = Server::start(move |request| {
        let mut request = request.clone();
        let Some(path) = request.path.strip_prefix("http://hub.example") else {
            return Reply::new(403, ""); // not tried again, which would take its time
        };
        request.path = path.to_owned();
        both(&proxied, &request, "http://hub.example")
    });
    let mut world = World::new();
    world.options.hub_endpoint = "http://hub.example".to_owned();
    succeeds(child::pull(&world).env("HTTP_PROXY", &proxy.url)).unwrap();
    assert!(world.store().find("owner/tiny").is_ok());
    assert!(proxy.count("GET", &repo.file("model.safetensors").etag()) == 1);

    let hub = Hub::good(&repo);
    let seen = proxy.requests().len();
    for exceptions in ["127.0.0.1", "localhost,127.0.0.0/8"] {
        let world = hub.world();
        let mut pull = child::pull(&world);
        succeeds(pull.env("HTTP_PROXY", &proxy.url).env("NO_PROXY", exceptions)).unwrap();
    }
    assert_eq!(proxy.requests().len(), seen);
    let world = hub.world();
    let error = succeeds(child::pull(&world).env("ALL_PROXY", &proxy.url)).unwrap_err();
    assert!(error.contains("(status 403)"), "{error}");
}

/// A company's network: only its proxy leads out, and only its own authority vouches for what comes back.
#[cfg(target_os = "linux")] // Apple's rules for how long a certificate may last are stricter than ours.
#[test]
fn a_hub_behind_a_proxy_and_an_authority_of_its_own() {
    let hub = secure_hub();
    let address = hub.url.strip_prefix("https://").unwrap().to_owned();
    let proxy = Server::start(move |request| {
        let mut reply = Reply::new(502, "");
        let is_hub = request.method == "CONNECT" && request.path == "hub.example:443";
        reply.tunnel = is_hub.then(|| address.clone());
        reply
    });
    let mut world = World::new();
    world.options.hub_endpoint = "https://hub.example".to_owned();
    let mut pull = child::pull(&world);
    let error = succeeds(pull.env("HTTPS_PROXY", &proxy.url)).unwrap_err();
    assert!(error.contains("cannot reach hub.example"), "{error}");
    assert!(error.contains("certificate"), "{error}");
    assert!(error.contains("hint: SSL_CERT_FILE may name"), "{error}");
    assert!(hub.requests().is_empty());

    let mut pull = child::pull(&world);
    pull.env("HTTPS_PROXY", &proxy.url).env("SSL_CERT_FILE", certificate("authority.pem"));
    succeeds(&mut pull).unwrap();
    assert!(world.store().find("owner/tiny").is_ok());
    assert!(proxy.requests().iter().all(|request| request.method == "CONNECT"));
}

#[cfg(target_os = "linux")]
#[test]
fn certificates_are_added_to_those_of_the_system() {
    let hub = secure_hub();
    let mut world = World::new();
    world.options.hub_endpoint = hub.url.clone();
    let error = world.store().pull("owner/tiny", &Silent).unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    for (file, why) in [("none.pem", "No such file"), ("hub-key.pem", "there are none")] {
        world.options.hub_certificates = Some(certificate(file));
        let error = world.store().pull("owner/tiny", &Silent).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(why), "{error}");
    }
    world.options.hub_certificates = Some(certificate("authority.pem"));
    world.store().pull("owner/tiny", &Silent).unwrap();
}

#[test]
fn the_token_does_not_follow_to_another_host_nor_come_back_from_it() {
    let repo = Repo::tiny();
    // A storage that sends the client back to the hub, in the hope of a token.
    let hub_address = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let back = hub_address.clone();
    let hub = Hub::tricky(
        &repo,
        Box::new(|request| request.path.starts_with("/bait").then(|| Reply::new(200, "bait"))),
        Box::new(move |_| {
            let to = format!("{}/bait", back.lock().unwrap());
            Some(Reply::new(302, "").with("Location", to))
        }),
    );
    hub_address.lock().unwrap().clone_from(&hub.hub.url);
    let mut world = hub.world();
    world.options.hub_token = Some("hf_secret".to_owned());
    world.store().pull("owner/tiny", &Silent).unwrap_err();
    let with_token = |server: &Server, start: &str| -> Vec<bool> {
        let requests = server.requests().into_iter().filter(|r| r.path.starts_with(start));
        requests.map(|r| r.header("authorization").is_some()).collect()
    };
    assert!(with_token(&hub.hub, "/owner/tiny").iter().all(|&has| has));
    let elsewhere = [with_token(&hub.hub, "/bait"), with_token(&hub.storage, "/")].concat();
    assert!(elsewhere.len() >= 2 && elsewhere.iter().all(|&has| !has), "{elsewhere:?}");
}
