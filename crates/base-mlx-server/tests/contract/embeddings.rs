use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::{SERVER, TestServer, capital, with};

fn embed(fields: Value) -> Value {
    SERVER.post("/v1/embeddings", &with(json!({ "model": "minilm" }), fields)).ok()
}

fn floats(embedding: &Value) -> Vec<f32> {
    embedding.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

fn decoded(embedding: &Value) -> Vec<f32> {
    use base64::Engine as _;
    let bytes = base64::prelude::BASE64_STANDARD.decode(embedding.as_str().unwrap()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn point_56_embeddings_have_the_shape_and_the_order_of_their_texts() {
    let answer = embed(json!({ "input": ["a cat sleeps", "stock markets fell", "a dog sleeps"] }));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("minilm")));
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    for (index, embedding) in data.iter().enumerate() {
        assert_eq!(
            (&embedding["object"], &embedding["index"]),
            (&json!("embedding"), &json!(index))
        );
        assert_eq!(embedding.as_object().unwrap().len(), 3, "{embedding}");
        let vector = floats(&embedding["embedding"]);
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert_eq!(vector.len(), 384);
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    // Two marks around each text.
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 15, "total_tokens": 15 }));
    let [cat, markets, dog] = [0, 1, 2].map(|index| floats(&data[index]["embedding"]));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(dot(&cat, &dog) > dot(&cat, &markets) + 0.3);
    // Each is what it is alone.
    assert_eq!(
        embed(json!({ "input": "a dog sleeps" }))["data"][0]["embedding"],
        data[2]["embedding"]
    );
}

#[test]
fn point_56_base64_is_the_same_floats_little_endian() {
    let plain = embed(json!({ "input": "a cat", "encoding_format": "float" }));
    let packed = embed(json!({ "input": "a cat", "encoding_format": "base64" }));
    let expected = floats(&plain["data"][0]["embedding"]);
    assert_eq!(decoded(&packed["data"][0]["embedding"]), expected);
    let error = SERVER
        .post(
            "/v1/embeddings",
            &json!({ "model": "minilm", "input": "a", "encoding_format": "hex" }),
        )
        .error(400);
    assert_eq!(error["param"], "encoding_format");
}

#[test]
fn point_56_texts_come_in_four_forms() {
    let text = embed(json!({ "input": "a cat" }));
    // [CLS] a cat [SEP]
    let tokens = json!([101, 1037, 4937, 102]);
    assert_eq!(embed(json!({ "input": tokens }))["data"], text["data"]);
    assert_eq!(embed(json!({ "input": [tokens] }))["data"], text["data"]);
    assert_eq!(embed(json!({ "input": ["a cat"] }))["data"], text["data"]);
    let two = embed(json!({ "input": [tokens, [101, 102]] }));
    assert_eq!(two["usage"]["prompt_tokens"], 6);
    assert_eq!(two["data"][0], text["data"][0]);
}

#[test]
fn point_56_fewer_dimensions_are_the_first_ones_brought_to_length_one() {
    let whole = floats(&embed(json!({ "input": "a cat" }))["data"][0]["embedding"]);
    let short =
        floats(&embed(json!({ "input": "a cat", "dimensions": 64 }))["data"][0]["embedding"]);
    assert_eq!(short.len(), 64);
    let length = whole[..64].iter().map(|x| x * x).sum::<f32>().sqrt();
    for (short, whole) in short.iter().zip(&whole) {
        assert!((short - whole / length).abs() < 1e-6);
    }
    for dimensions in [0, 385] {
        let body = json!({ "model": "minilm", "input": "a", "dimensions": dimensions });
        assert_eq!(SERVER.post("/v1/embeddings", &body).error(400)["param"], "dimensions");
    }
}

#[test]
fn point_56_what_cannot_be_embedded_is_told_by_its_number() {
    let wrong = |input: Value| {
        SERVER.post("/v1/embeddings", &json!({ "model": "minilm", "input": input })).error(400)
    };
    for input in [
        json!(null),
        json!(""),
        json!([]),
        json!(["a", ""]),
        json!([[]]),
        json!([1, "a"]),
        json!({}),
        json!([101, 40_000]),
        json!(vec!["a"; 2049]),
    ] {
        assert_eq!(wrong(input.clone())["param"], "input", "{input}");
    }
    let long = "word ".repeat(600);
    let error = wrong(json!(["a", long]));
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with("text 1 of `input` has 602 tokens, but the model takes at most 512"),
        "{message}"
    );
    let cut = embed(json!({ "input": long, "truncate_prompt_tokens": -1 }));
    assert_eq!(cut["usage"]["prompt_tokens"], 512);
    let cut = embed(json!({ "input": long, "truncate_prompt_tokens": 10 }));
    assert_eq!(cut["usage"]["prompt_tokens"], 10);
    for (fields, param) in [
        (json!({ "prompt_name": "query" }), "prompt_name"),
        (json!({ "input": [101], "prompt_name": "query" }), "prompt_name"),
        (json!({ "truncate_prompt_tokens": 0 }), "truncate_prompt_tokens"),
        (json!({ "truncate_prompt_tokens": 2 }), "truncate_prompt_tokens"),
        (json!({ "normalized": false }), "normalized"),
        (json!({ "input_type": "query" }), "input_type"),
    ] {
        let body = with(json!({ "model": "minilm", "input": "a" }), fields);
        assert_eq!(SERVER.post("/v1/embeddings", &body).error(400)["param"], param);
    }
}

#[test]
fn point_56_hundreds_of_texts_of_all_lengths_are_one_request() {
    let texts: Vec<String> = (0..300).map(|index| "many words ".repeat(1 + index % 40)).collect();
    let answer = embed(json!({ "input": texts }));
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 300);
    for index in 40..300 {
        assert_eq!(data[index]["embedding"], data[index - 40]["embedding"], "text {index}");
    }
}

#[test]
fn point_56_without_a_model_it_is_the_default_one() {
    let answer = SERVER.post("/v1/embeddings", &json!({ "input": "a cat" })).ok();
    assert_eq!(answer["model"], "minilm");
}

#[test]
fn point_59_each_model_says_what_it_is_for() {
    let unsuitable = |path: &str, body: Value, says: &str| {
        let error = SERVER.post(path, &body).error(400);
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!("model"), &json!("model_not_supported"))
        );
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    };
    let minilm = json!({ "model": "minilm" });
    let smollm2 = json!({ "model": "smollm2", "input": "a" });
    unsuitable(
        "/v1/chat/completions",
        with(capital(), minilm.clone()),
        "it answers at /v1/embeddings",
    );
    unsuitable(
        "/v1/completions",
        with(json!({ "prompt": "a" }), minilm.clone()),
        "is an embedding model",
    );
    unsuitable("/v1/embeddings", smollm2, "it answers at /v1/chat/completions");
    let pairs = with(json!({ "query": "a", "documents": ["b"] }), minilm);
    unsuitable("/v1/rerank", pairs, "it answers at /v1/embeddings");
    let error = SERVER.chat(with(capital(), json!({ "draft_model": "minilm" }))).error(400);
    assert_eq!(error["param"], "draft_model");
    let load = |fields: Value| SERVER.post("/v1/models/minilm/load", &fields);
    assert_eq!(load(json!({ "kv_cache_type": "q8_0" })).error(400)["param"], "kv_cache_type");
    assert_eq!(load(json!({})).ok()["context_length"], 512);
    assert_eq!(load(json!({ "context_length": 128 })).error(400)["param"], "context_length");
}

/// A tiny cross-encoder of random weights, with a vocabulary of words.
static RANKER: LazyLock<TestServer> = LazyLock::new(|| {
    let models = tempfile::tempdir().unwrap().keep();
    let folder = models.join("ranker");
    std::fs::create_dir(&folder).unwrap();
    let golden =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../base-mlx-core/tests/golden/encoders/bert_ranks");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(golden).join(file), folder.join(file)).unwrap();
    }
    let words = ["[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "sky", "grass", "is", "the"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let special = |id: &str, token: usize| json!({ "id": id, "ids": [token], "tokens": [id] });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
                       { "Sequence": { "id": "A", "type_id": 0 } },
                       { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }],
            "pair": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
                     { "Sequence": { "id": "A", "type_id": 0 } },
                     { "SpecialToken": { "id": "[SEP]", "type_id": 0 } },
                     { "Sequence": { "id": "B", "type_id": 1 } },
                     { "SpecialToken": { "id": "[SEP]", "type_id": 1 } }],
            "special_tokens": { "[CLS]": special("[CLS]", 1), "[SEP]": special("[SEP]", 2) },
        },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    TestServer::with_models(&models, |_| {})
});

#[test]
fn documents_are_ranked_by_their_score_with_the_query() {
    let documents =
        json!(["the grass is green", { "text": "the sky is blue" }, "red red red", "green"]);
    let body = json!({ "model": "ranker", "query": "the sky", "documents": documents });
    let answer = RANKER.post("/v1/rerank", &body).ok();
    assert_eq!(answer["model"], "ranker");
    // 3 marks, 2 words of the query, and 4, 4, 3 and 1 of the documents.
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 32, "total_tokens": 32 }));
    let results = answer["results"].as_array().unwrap();
    let scores: Vec<f64> =
        results.iter().map(|one| one["relevance_score"].as_f64().unwrap()).collect();
    assert!(
        scores.is_sorted_by(|a, b| a >= b)
            && scores.iter().all(|score| (0.0..=1.0).contains(score)),
        "{scores:?}"
    );
    let mut indices: Vec<u64> = results.iter().map(|one| one["index"].as_u64().unwrap()).collect();
    assert!(results.iter().all(|one| one.get("document").is_none()));
    let best = indices[0] as usize;
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2, 3]);

    let body = with(body, json!({ "top_n": 1, "return_documents": true }));
    let one = RANKER.post("/v1/rerank", &body).ok();
    let texts = ["the grass is green", "the sky is blue", "red red red", "green"];
    assert_eq!(one["results"].as_array().unwrap().len(), 1);
    assert_eq!(one["results"][0]["document"], json!({ "text": texts[best] }));
    assert_eq!(one["results"][0]["relevance_score"], results[0]["relevance_score"]);

    // A long document loses its end, a long query is refused.
    let long = "green ".repeat(100);
    let body = json!({ "model": "ranker", "query": "sky", "documents": [long] });
    assert_eq!(RANKER.post("/v1/rerank", &body).ok()["usage"]["prompt_tokens"], 40);
    for (fields, param) in [
        (json!({ "query": long }), "query"),
        // Whose pair with anything has no room but for its marks.
        (json!({ "query": "green ".repeat(37) }), "query"),
        (json!({ "rank_fields": ["title"] }), "rank_fields"),
        (json!({ "query": "" }), "query"),
        (json!({ "query": null }), "query"),
        (json!({ "documents": [] }), "documents"),
        (json!({ "documents": "a" }), "documents"),
        (json!({ "documents": [{ "body": "a" }] }), "documents[0].text"),
        (json!({ "top_n": 0 }), "top_n"),
    ] {
        let error = RANKER.post("/v1/rerank", &with(body.clone(), fields)).error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    let embed = json!({ "model": "ranker", "input": "a" });
    let error = RANKER.post("/v1/embeddings", &embed).error(400);
    assert!(error["message"].as_str().unwrap().contains("it answers at /v1/rerank"), "{error}");
}
