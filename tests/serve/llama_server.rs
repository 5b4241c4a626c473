//! llama-server's `/completion`: the answers of `/v1/completions` in another shape.

use crate::server::{Server, agent, with};
use serde_json::{Value, json};

const PATH: &str = "/completion";

#[test]
fn its_completions_are_those_of_openais_shape() {
    let Some(server) = Server::start(&["--ctx", "128"]) else { return };
    let body = json!({"prompt": "One day a violin", "temperature": 0, "n_predict": 8});
    let want = server.ok("/v1/completions", &with(body.clone(), json!({"logprobs": 2})));
    let text = want["choices"][0]["text"].as_str().unwrap();
    let ids = &want["choices"][0]["logprobs"]["token_ids"];

    let whole = server.ok(
        PATH,
        &with(body.clone(), json!({"n_probs": 2, "return_tokens": true, "cache_prompt": true, "id_slot": -1})),
    );
    assert_eq!((&whole["content"], &whole["tokens"], &whole["stop"]), (&json!(text), ids, &json!(true)));
    assert_eq!((&whole["stop_type"], &whole["tokens_predicted"]), (&json!("limit"), &json!(8)));
    assert_eq!(whole["tokens_evaluated"], want["usage"]["prompt_tokens"]);
    let scores = whole["completion_probabilities"].as_array().unwrap();
    assert!(scores.len() == 8 && scores.iter().all(|s| s["top_logprobs"].as_array().unwrap().len() == 2));
    assert_eq!(scores[3]["logprob"], want["choices"][0]["logprobs"]["token_logprobs"][3]);
    assert_eq!(
        (&whole["generation_settings"]["temperature"], &whole["generation_settings"]["top_k"]),
        (&json!(0.0), &json!(40))
    );

    // Events without [DONE].
    let mut response =
        agent().post(format!("{}{PATH}", server.url)).send_json(with(body.clone(), json!({"stream": true}))).unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = response.body_mut().read_to_string().unwrap();
    let parts: Vec<Value> =
        events.lines().filter_map(|l| l.strip_prefix("data: ")).map(|l| serde_json::from_str(l).unwrap()).collect();
    let (last, before) = parts.split_last().unwrap();
    assert_eq!(before.iter().map(|p| p["content"].as_str().unwrap()).collect::<String>(), text);
    assert!(before.iter().all(|p| p["stop"] == false) && last["stop"] == true && last["timings"]["predicted_n"] == 8);
    assert!(!events.contains("event:"), "{events}");

    // A stop sequence is told by name; an end by the form is the model's own.
    let word = text.trim().split(' ').nth(1).unwrap();
    let stopped = server.ok(PATH, &with(body.clone(), json!({"stop": ["~~", word]})));
    assert_eq!((&stopped["stop_type"], &stopped["stopping_word"]), (&json!("word"), &json!(word)));
    assert_eq!(stopped["content"], text[..text.find(word).unwrap()]);
    let formed = server.ok(PATH, &with(body.clone(), json!({"json_schema": {"const": 7}})));
    assert_eq!((&formed["content"], &formed["stop_type"]), (&json!("7"), &json!("eos")));
    assert_eq!(formed["tokens"], json!([]));

    // Several prompts, and one of tokens and texts.
    let several = server.ok(PATH, &with(body.clone(), json!({"prompt": ["One day a violin", "A"]})));
    assert!(several[0]["content"] == text && several.as_array().unwrap().len() == 2);
    let tokens = server.ok("/tokenize", &json!({"content": "One day"}))["tokens"].clone();
    let mut mixed = tokens.as_array().unwrap().clone();
    mixed.push(json!(" a violin"));
    let mixed = server.ok(PATH, &with(body.clone(), json!({"prompt": mixed})));
    assert_eq!((&mixed["content"], &mixed["prompt"]), (&json!(text), &json!("One day a violin")));
    assert_eq!(server.post(PATH, &json!({"n_predict": 3})).0, 400);
}
