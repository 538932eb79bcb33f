use std::io::Write;
use std::time::Duration;

use base_mlx_server::ServeError;
use serde_json::json;

use crate::support::{Answer, TestServer, capital, streamed, until, user, with, with_model};

#[test]
fn running_answers_finish_and_new_ones_are_refused() {
    let server = TestServer::start(|options| options.grace = Duration::from_secs(100));
    let body = with_model(json!({
        "messages": user("Count."), "max_tokens": 40, "ignore_eos": true, "temperature": 0, "stream": true,
    }));
    let body = body.to_string();
    // It has its place and cannot end before the rest of its body is sent.
    let mut running = server.announce_chat(&body);
    running.write_all(&body.as_bytes()[..10]).unwrap();
    server.begin_shutdown();
    // The signal is on its way; from its arrival on everybody is refused.
    let refused = until(|| server.get("/v1/models"), |reply| reply.status != 200);
    assert_eq!(refused.error(503)["code"], "shutting_down");
    assert!(refused.header("retry-after").is_some());
    server.chat(capital()).error(503);
    assert_eq!(server.get("/health").status, 503);

    running.write_all(&body.as_bytes()[10..]).unwrap();
    let chunks = Answer::read(running, false).finish().chunks();
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(streamed(&chunks, 0).len() > 40);
    server.wait_until_gone();
}

#[test]
fn answers_that_take_longer_than_the_grace_time_are_cut() {
    let server = TestServer::start(|options| options.grace = Duration::from_millis(50));
    let body = with(capital(), json!({ "max_tokens": null, "ignore_eos": true, "stream": true }));
    let mut running = server.open_chat(body);
    running.piece();
    server.begin_shutdown();
    assert!(running.finish().text().contains("shutting_down"));
    server.wait_until_gone();
}

#[tokio::test]
async fn a_port_in_use_is_told_with_its_address() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let error = crate::support::bind(port).await.err().unwrap();
    assert!(matches!(error, ServeError::PortInUse { .. }));
    assert!(error.to_string().starts_with(&format!("127.0.0.1:{port} is in use")));
}
