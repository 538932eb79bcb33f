use std::thread;

use serde_json::{Value, json};

use crate::support::{SERVER, TestServer, content, streamed, user, with};

#[test]
fn point_62_eight_clients_at_once_get_what_they_get_alone() {
    let questions = [
        "What is the capital of France?",
        "Write a haiku about rain.",
        "Count from one to ten.",
        "Explain gravity to a child.",
        "Name three colours.",
        "What is two plus two?",
        "Write a Python function that adds two numbers.",
        "Wie heißt die Hauptstadt von Österreich? 😀",
    ];
    for sampling in [json!({ "temperature": 0 }), json!({ "temperature": 0.8, "seed": 42 })] {
        let body = |question: &str| {
            with(json!({ "messages": user(question), "max_tokens": 24 }), sampling.clone())
        };
        let alone: Vec<String> = questions
            .iter()
            .map(|question| content(&SERVER.chat(body(question)).ok()).to_owned())
            .collect();
        let together: Vec<String> = thread::scope(|scope| {
            let clients: Vec<_> = questions
                .iter()
                .enumerate()
                .map(|(index, question)| {
                    let body = body(question);
                    scope.spawn(move || match index % 2 {
                        0 => content(&SERVER.chat(body).ok()).to_owned(),
                        _ => streamed(
                            &SERVER.chat(with(body, json!({ "stream": true }))).chunks(),
                            0,
                        ),
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        assert_eq!(together, alone, "{sampling}");
    }
}

#[test]
fn models_asked_for_at_once_are_loaded_once_and_beside_each_other() {
    let server = TestServer::start(|_| {});
    let ask = |model: &'static str| {
        let body = json!({ "model": model, "messages": user("Say hi."), "temperature": 0, "max_tokens": 2 });
        server.chat(body).ok()
    };
    let answers: Vec<Value> = thread::scope(|scope| {
        let models = ["smollm2", "qwen2.5-coder-0.5b", "smollm2", "smollm2", "qwen2.5-coder-0.5b"];
        let clients: Vec<_> =
            models.map(|model| scope.spawn(move || ask(model))).into_iter().collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(answers[0]["choices"], answers[2]["choices"]);
    assert_eq!(answers[1]["model"], "qwen2.5-coder-0.5b");
    assert_eq!(server.get("/health").ok()["loaded"], json!(["qwen2.5-coder-0.5b", "smollm2"]));
}
