//! The numbers that `GET /metrics` shows are those of what happened.

use serde_json::json;

use crate::support::{TestServer, user};
use crate::test_models::test_model;

/// The value of one line of the page, found by name and model; 0 if there is none.
fn value(page: &str, name: &str, model: &str) -> f64 {
    let label = format!("model=\"{model}\"");
    let mut lines = page.lines().filter(|line| line.starts_with(name) && line.contains(&label));
    let line = lines.find(|line| line[name.len()..].starts_with('{'));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn metrics_count_hits_misses_and_evictions_and_know_the_budget() {
    // The recorder is the process's, so no other test may use this name.
    let models = tempfile::tempdir().unwrap();
    let model = "counted";
    let file = models.path().join(format!("{model}.gguf"));
    std::os::unix::fs::symlink(test_model("smollm2.gguf"), file).unwrap();
    let server = TestServer::with_models(models.path(), |options| {
        options.engine.context = Some(256);
        options.engine.parallel = 1;
    });
    let page = || {
        let reply = server.get("/metrics");
        assert_eq!(reply.status, 200);
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        assert_eq!(reply.header("content-type"), Some(kind));
        String::from_utf8(reply.body.clone()).unwrap()
    };
    let ask = |text: &str| {
        let body =
            json!({ "model": model, "messages": user(text), "max_tokens": 4, "temperature": 0 });
        server.chat(body).ok()["usage"].clone()
    };
    let usage = ask("Which river flows through Paris?");
    ask("Which river flows through Paris?");
    let now = page();
    let get = |name: &str| value(&now, name, model);
    assert_eq!(get("base_mlx_prefix_cache_misses_total"), 1.0);
    assert_eq!(get("base_mlx_prefix_cache_hits_total"), 1.0);
    assert_eq!(get("base_mlx_prefix_cache_evictions_total"), 0.0);
    let prompt = usage["prompt_tokens"].as_f64().unwrap();
    assert_eq!(get("base_mlx_prompt_tokens_total"), 2.0 * prompt);
    assert_eq!(get("base_mlx_prompt_tokens_cached_total"), prompt - 1.0);
    let answers = 2.0 * usage["completion_tokens"].as_f64().unwrap();
    assert_eq!(get("base_mlx_completion_tokens_total"), answers);
    assert_eq!(get("base_mlx_requests_total"), 2.0);
    assert!(now.contains("outcome=\"done\""), "{now}");
    let [held, budget] = [get("base_mlx_prefix_cache_bytes"), get("base_mlx_kv_budget_bytes")];
    assert!(0.0 < held && held <= budget, "{held} of {budget}");
    assert_eq!(get("base_mlx_prefix_cache_budget_bytes"), budget, "nothing runs");
    assert_eq!(get("base_mlx_time_to_first_token_seconds_count"), 2.0);

    // 256 positions are room for a few short chats.
    for number in 0..12 {
        ask(&format!("{number} is a number, and I want to hear a story about it. Tell it."));
    }
    let now = page();
    assert!(value(&now, "base_mlx_prefix_cache_evictions_total", model) > 0.0, "{now}");
    assert!(value(&now, "base_mlx_prefix_cache_bytes", model) <= budget);
}
