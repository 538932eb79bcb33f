use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::ServiceExt;
use axum::extract::Request;
use axum::serve::ListenerExt;
use base_mlx_core::engine::Device;
use base_mlx_core::store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequest;

use crate::App;
use crate::models::Models;
use crate::options::ServerOptions;
use crate::router::{router, without_spare_slashes};
use crate::routes::metrics;
use crate::running::Gate;

/// A server that has its port and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "{address} is in use by another program\n\
         hint: choose another port with `--port`, or stop that program"
    )]
    PortInUse { address: String },
    #[error("cannot listen on {address}")]
    Listen { address: String, source: std::io::Error },
    #[error("the server stopped")]
    Stopped(#[source] std::io::Error),
}

/// Answers requests until `shutdown` resolves and the running answers are written.
pub async fn serve(
    options: ServerOptions,
    store: Store,
    device: Device,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    Server::bind(options, store, device).await?.run(shutdown).await
}

impl Server {
    pub async fn bind(
        options: ServerOptions,
        store: Store,
        device: Device,
    ) -> Result<Self, ServeError> {
        let host = options.host.trim_start_matches('[').trim_end_matches(']');
        let bound = TcpListener::bind((host, options.port)).await.and_then(|listener| {
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let (listener, address) = bound.map_err(|source| {
            let address = format!("{}:{}", options.host, options.port);
            match source.kind() {
                std::io::ErrorKind::AddrInUse => ServeError::PortInUse { address },
                _ => ServeError::Listen { address, source },
            }
        })?;
        metrics::install();
        let models = Models::new(store, device, &options);
        let gate = Gate::new(options.max_requests);
        Ok(Self { listener, address, app: Arc::new(App { options, models, gate }) })
    }

    /// Where the server can be reached, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// When `shutdown` resolves, new requests are refused with 503 and running ones may go on for the grace time.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let Self { listener, app, .. } = self;
        let (gate, grace) = (app.gate.clone(), app.options.grace);
        let unloading = app.models.clone().unload_expired();
        // Tokens are small and each one is waited for.
        let listener = listener.tap_io(|connection| {
            let _ = connection.set_nodelay(true);
        });
        let service = MapRequest::new(router(app), without_spare_slashes);
        let service = ServiceExt::<Request>::into_make_service(service);
        let answered = CancellationToken::new();
        let serving = axum::serve(listener, service)
            .with_graceful_shutdown(answered.clone().cancelled_owned())
            .into_future();
        let closing = async {
            shutdown.await;
            tracing::info!("shutting down, running answers have {} s", grace.as_secs());
            gate.close(grace).await;
            answered.cancel();
            tokio::time::sleep(LAST_BYTES).await;
        };
        tokio::select! {
            served = serving => served.map_err(ServeError::Stopped),
            () = closing => Ok(()),
            () = unloading => unreachable!("it never returns"),
            () = metrics::keep_up() => unreachable!("it never returns"),
        }
    }
}

/// How long the ends of the last answers may take on their way to slow clients.
const LAST_BYTES: Duration = Duration::from_secs(2);
