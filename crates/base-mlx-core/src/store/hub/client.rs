use std::fs;
use std::path::Path;

use reqwest::blocking::Client;
use reqwest::{Certificate, redirect};

use super::super::{StoreError, StoreOptions};
use super::http::reason;

/// What speaks HTTP: by the system's proxies and certificates, and never of its own accord to somebody else.
pub(super) fn new(options: &StoreOptions) -> Result<Client, StoreError> {
    // Whoever came first has decided; reqwest needs one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = Client::builder()
        .user_agent(concat!("base-mlx/", env!("CARGO_PKG_VERSION")))
        // HTTP/2 would put all transfers on one connection, as slow as that one is.
        .http1_only()
        .redirect(redirect::Policy::none())
        .connect_timeout(options.connect_timeout)
        // Counted anew for every piece of a body.
        .timeout(options.idle_timeout);
    if !options.system_proxy {
        client = client.no_proxy();
    }
    if let Some(path) = &options.hub_certificates {
        let certificates = certificates(path)
            .map_err(|why| StoreError::Certificates { path: path.clone(), why })?;
        client = client.tls_certs_merge(certificates);
    }
    client.build().map_err(|error| StoreError::Unreachable {
        host: options.hub_endpoint.clone(),
        why: reason(&error),
    })
}

/// What a PEM file holds.
fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let pem = fs::read(path).map_err(|error| error.to_string())?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| reason(&error))?;
    match certificates.is_empty() {
        true => Err("there are none".to_owned()),
        false => Ok(certificates),
    }
}
