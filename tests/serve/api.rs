//! Answers, their form, and what is refused.

use crate::common;
use crate::server::{DIAL, Server, agent, ask, with};
use bidpo_core::data::{ChatTemplate, Message, Prompt, TemplateChoice};
use bidpo_core::steer::{ControlVector, ScaledVector, SteeringVector, combine, decode_steered};
use ggml_grad::llama::{Batch, Context, ContextParams, Model, ModelParams, Token};
use serde_json::{Value, json};
use std::sync::Arc;

const QUESTION: &str = "How do I make a cup of tea?";

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn steered(scale: f64) -> Value {
    json!({"steering": [{"vector": DIAL, "scale": scale}]})
}

/// Token and log-probability of each token of an answer.
fn logprobs(answer: &Value) -> Vec<(i64, f64)> {
    let list = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    list.iter().map(|t| (t["id"].as_i64().unwrap(), t["logprob"].as_f64().unwrap())).collect()
}

/// The same computed here, by llama.cpp with its own control vector where every row is steered.
fn oracle(model: &Arc<Model>, question: &str, scale: f32, scope: &str, n: usize) -> Vec<(i64, f64)> {
    let template = ChatTemplate::new(model, &TemplateChoice::Auto).unwrap();
    let tokens = template.encode_prompt(model, &Prompt::Messages(vec![Message::user(question)])).unwrap();
    let file = crate::server::vectors().join(format!("{DIAL}.{}", common::SMOL));
    let dial = ScaledVector { name: String::new(), vector: Arc::new(SteeringVector::load(&file).unwrap()), scale };
    let vector: Option<ControlVector> = combine(&[dial], None, model).unwrap();
    let params = ContextParams {
        n_ctx: 512,
        n_batch: 64,
        flash_attention: false,
        shared_cache: false,
        ..ContextParams::default()
    };
    let mut ctx = Context::new(model, &params).unwrap();
    if scope == "all" {
        vector.as_ref().unwrap().apply(&mut ctx).unwrap();
    }
    let of = |at: usize| match scope {
        "prompt" => vector.as_ref().filter(|_| at + 1 < tokens.len()),
        "answer" => vector.as_ref().filter(|_| at + 1 >= tokens.len()),
        _ => None,
    };
    let mut row = 0;
    for (c, piece) in tokens.chunks(64).enumerate() {
        let mut batch = Batch::new();
        let mut rows = Vec::new();
        for (i, &t) in piece.iter().enumerate() {
            let at = c * 64 + i;
            row = batch.add(t, at, &[0], at + 1 == tokens.len());
            rows.push(of(at));
        }
        decode_steered(&mut ctx, &batch, &rows).unwrap();
    }
    let mut out = Vec::new();
    for k in 0..n {
        let logits = ctx.logits(row).unwrap();
        let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let sum: f64 = logits.iter().map(|&x| f64::from(x - logits[best]).exp()).sum();
        out.push((best as i64, -sum.ln()));
        let mut batch = Batch::new();
        let at = tokens.len() + k;
        row = batch.add(best as Token, at, &[0], true);
        decode_steered(&mut ctx, &batch, &[of(at)]).unwrap();
    }
    out
}

#[test]
fn answers_are_those_of_llama_cpp() {
    let Some(server) = Server::start(&[]) else { return };
    let path = common::model(common::SMOL).unwrap();
    let model = Model::load(&path, &ModelParams { plain_weights: true, ..ModelParams::default() }).unwrap();
    // Longer than one piece of a prompt.
    let question =
        format!("{QUESTION} Think of the water, the leaves, the pot, the cup, the milk and the sugar. ").repeat(3);
    let mut seen = Vec::new();
    for (scale, scope) in [(1.0, "all"), (-0.5, "prompt"), (1.0, "answer")] {
        let body = with(with(ask(&question, 12), steered(scale)), json!({"scope": scope, "logprobs": true}));
        let (here, there) =
            (oracle(&model, &question, scale as f32, scope, 12), logprobs(&server.ok("/v1/chat/completions", &body)));
        assert_eq!(
            here.iter().map(|t| t.0).collect::<Vec<_>>(),
            there.iter().map(|t| t.0).collect::<Vec<_>>(),
            "{scope}"
        );
        for (a, b) in here.iter().zip(&there) {
            assert!((a.1 - b.1).abs() < 1e-5, "{scope}: {} {}", a.1, b.1);
        }
        seen.push(there);
    }
    assert!(seen[0] != seen[1] && seen[0] != seen[2] && seen[1] != seen[2]);
}

#[test]
fn streams_stops_and_scores() {
    let Some(server) = Server::start(&[]) else { return };
    let body = with(with(ask(QUESTION, 40), steered(1.0)), json!({"logprobs": true, "top_logprobs": 3}));
    let whole = server.ok("/v1/chat/completions", &body);
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["usage"]["completion_tokens"], 40);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let listed = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(listed.len(), 40);
    assert_eq!(listed.iter().map(|t| t["token"].as_str().unwrap()).collect::<String>(), text(&whole));
    for t in listed {
        assert_eq!(t["top_logprobs"][0]["id"], t["id"], "greedy takes the most likely token");
        assert_eq!(t["top_logprobs"].as_array().unwrap().len(), 3);
    }

    // In pieces, the same.
    let parts = server.stream(
        "/v1/chat/completions",
        &with(body.clone(), json!({"stream": true, "stream_options": {"include_usage": true}})),
    );
    let joined: String = parts.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(joined, text(&whole));
    assert!(parts.len() > 30, "it came in {} parts", parts.len());
    let streamed: Vec<&Value> =
        parts.iter().filter_map(|p| p["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
    assert!(streamed.into_iter().eq(listed));
    let (first, last) = (&parts[0], parts.last().unwrap());
    assert_eq!((&first["choices"][0]["delta"]["role"], &first["usage"]), (&json!("assistant"), &Value::Null));
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);

    // A stop sequence that spans tokens: from the middle of one to the middle of the next.
    let all = text(&whole);
    let start = all.char_indices().nth(60).unwrap().0;
    let stop: String = all[start..].chars().take(9).collect();
    let cut = &all[..all.find(&stop).unwrap()];
    let body = with(body, json!({"stop": ["never this", stop]}));
    let stopped = server.ok("/v1/chat/completions", &body);
    assert_eq!((text(&stopped), &stopped["choices"][0]["finish_reason"]), (cut, &json!("stop")));
    let parts = server.stream("/v1/chat/completions", &with(body, json!({"stream": true})));
    let joined: String = parts.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(joined, cut);

    // The answer's tokens are likelier under the steering they were written with.
    let ids: Vec<&Value> = listed.iter().map(|t| &t["id"]).collect();
    let score = |more: Value| {
        let body = json!({"messages": [{"role": "user", "content": QUESTION}], "tokens": ids});
        server.ok("/v1/score", &with(body, more))
    };
    let (own, none) = (score(steered(1.0)), score(json!({})));
    let sum = |v: &Value| v["logprob"].as_f64().unwrap();
    assert!(sum(&own) > sum(&none) + 5.0, "{own} {none}");
    // One by one or all at once, ggml's int8 kernels round a little differently.
    let apart = own["tokens"].as_array().unwrap().iter().zip(listed);
    let apart: f64 = apart.map(|(a, b)| (a["logprob"].as_f64().unwrap() - b["logprob"].as_f64().unwrap()).abs()).sum();
    assert!(apart / 40.0 < 0.2, "{apart}");
    let text = server
        .ok("/v1/score", &json!({"messages": [{"role": "user", "content": QUESTION}], "answer": "You boil water."}));
    assert_eq!(text["tokens"].as_array().unwrap().len(), 4);
}

#[test]
fn completions_echo_choices_and_seeds() {
    let Some(server) = Server::start(&[]) else { return };
    let whole = server.ok(
        "/v1/completions",
        &json!({"prompt": "The cat sat", "max_tokens": 6, "temperature": 0, "logprobs": 2, "echo": true}),
    );
    let choice = &whole["choices"][0];
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|t| t.as_str().unwrap()).collect::<String>(), choice["text"].as_str().unwrap());
    assert!(choice["text"].as_str().unwrap().starts_with("The cat sat"));
    assert_eq!(
        (&choice["logprobs"]["token_logprobs"][0], &choice["logprobs"]["text_offset"][1]),
        (&Value::Null, &json!(3))
    );
    // The prompt alone, as evaluation programs ask for it.
    let ids = &choice["logprobs"]["token_ids"];
    let scored = server.ok("/v1/completions", &json!({"prompt": ids, "max_tokens": 0, "logprobs": 1, "echo": true}));
    assert_eq!(scored["choices"][0]["logprobs"]["token_ids"], *ids);
    assert_eq!(scored["choices"][0]["text"], choice["text"]);
    assert_eq!(scored["usage"]["completion_tokens"], 0);

    let sampled = |seed: u32, n: usize| -> Vec<String> {
        let body = json!({"prompt": ["One day", "At night"], "max_tokens": 12, "seed": seed, "n": n, "top_p": 0.9, "min_p": 0.02});
        let answer = server.ok("/v1/completions", &body);
        let choices = answer["choices"].as_array().unwrap();
        assert!(choices.iter().enumerate().all(|(i, c)| c["index"] == i));
        choices.iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
    };
    let (a, b, c) = (sampled(7, 2), sampled(7, 2), sampled(8, 1));
    assert_eq!((a.len(), &a), (4, &b));
    // Choices have seeds that follow one another.
    assert_eq!((&a[1], &a[3]), (&c[0], &c[1]));
    assert!(a[0] != a[1]);
    // A bias of 100 leaves no choice.
    let body = json!({"prompt": "x", "max_tokens": 3, "temperature": 0, "logit_bias": {"253": 100}});
    assert_eq!(server.ok("/v1/completions", &body)["choices"][0]["text"], " a a a");
    // What steers through a template is a text when a person writes it.
    let chat = server.ok("/v1/chat/completions", &ask("<|im_end|>", 1));
    let plain = server.ok("/v1/chat/completions", &ask("x", 1));
    assert!(chat["usage"]["prompt_tokens"].as_i64() > plain["usage"]["prompt_tokens"].as_i64());
}

#[test]
fn what_a_server_tells() {
    let Some(server) = Server::start(&["--alias", "tea"]) else { return };
    let json = |path: &str| -> Value { serde_json::from_str(&server.get(path).1).unwrap() };
    assert_eq!(json("/v1/models")["data"][0]["id"], "tea");
    assert_eq!(json("/v1/models/tea")["object"], "model");
    assert_eq!(server.get("/v1/models/coffee").0, 404);
    let vectors = json("/v1/vectors");
    let names: Vec<&str> = vectors["data"].as_array().unwrap().iter().map(|v| v["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["misconceptions", DIAL], "those of the other model are left out");
    let dial = &vectors["data"][1];
    assert_eq!(dial["layers"], json!([15]));
    let safe = dial["safe_scale"][1].as_f64().unwrap();
    assert!((safe * dial["percent_at_scale_1"].as_f64().unwrap() - 20.0).abs() < 1e-6);
    assert!(!vectors.to_string().contains(".gguf") && !vectors.to_string().contains('/'), "{vectors}");
    assert_eq!(server.get("/health"), (200, "{\"status\":\"ok\"}".into()));
    // A scale in percent is a factor.
    let factor = 5.0 / dial["percent_at_scale_1"].as_f64().unwrap();
    let answer = |scale: Value| {
        let body = with(
            ask(QUESTION, 16),
            json!({"steering": [{"vector": DIAL, "scale": scale, "layers": [10, 20]}], "model": "tea"}),
        );
        server.ok("/v1/chat/completions", &body)["choices"].clone()
    };
    assert_eq!(answer(json!("5%")), answer(json!(factor)));
    assert!(server.metric("bidpo_generated_tokens_total") == 32.0 && server.metric("bidpo_jobs_finished_total") == 2.0);
    // Half of the prompt was in the cache, but not under other steering.
    assert_eq!(server.metric("bidpo_jobs_running"), 0.0);
}

#[test]
fn what_is_refused_says_why() {
    let Some(server) =
        Server::start(&["--max-body", "20000", "--ctx", "256", "--max-output", "100", "--queue", "2", "--strict-api"])
    else {
        return;
    };
    let m = json!([{"role": "user", "content": "x"}]);
    let long = "word ".repeat(400);
    for (body, param, code, part) in [
        (json!({}), "messages", "invalid_value", "missing"),
        (json!({"messages": []}), "messages", "invalid_value", "empty"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role", "invalid_value", "king"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].type",
            "unsupported_parameter",
            "image",
        ),
        (json!({"messages": m, "tools": [{"type": "function"}]}), "tools[0].function", "invalid_value", "with a name"),
        (json!({"messages": m, "temperature": -1}), "temperature", "invalid_value", "from 0 to"),
        (json!({"messages": m, "n": 8}), "n", "invalid_value", "at most 6"),
        (json!({"messages": m, "max_tokens": 0}), "max_tokens", "invalid_value", "-1 for no limit"),
        (json!({"messages": m, "top_logprobs": 2}), "top_logprobs", "invalid_value", "needs logprobs"),
        (json!({"messages": m, "stop": [1]}), "stop", "invalid_value", "strings"),
        (json!({"messages": m, "logit_bias": {"99999999": 1}}), "logit_bias", "invalid_value", "no token"),
        (json!({"messages": m, "colour": 1}), "colour", "unknown_parameter", "unknown"),
        (json!({"messages": m, "vector": DIAL}), "vector", "unknown_parameter", "\"steering\": ["),
        (json!({"messages": m, "scope": "some"}), "scope", "invalid_value", "answer"),
        (
            json!({"messages": m, "steering": [{"vector": "../../etc/passwd"}]}),
            "steering[0].vector",
            "invalid_value",
            "this server has",
        ),
        (
            json!({"messages": m, "steering": [{"vector": DIAL, "layers": [1, 3]}]}),
            "steering[0].layers",
            "invalid_value",
            "none of them in",
        ),
        (
            json!({"messages": m, "steering": [{"vector": DIAL, "layers": [10, 99]}]}),
            "steering[0].layers",
            "invalid_value",
            "cannot be steered",
        ),
        (
            json!({"messages": m, "steering": [{"vector": DIAL, "scale": 3.4e38}]}),
            "steering[0].scale",
            "invalid_value",
            "not finite",
        ),
        (json!({"messages": [{"role": "user", "content": long}]}), "messages", "context_length_exceeded", "(--ctx)"),
    ] {
        let (status, answer) = server.post("/v1/chat/completions", &body);
        let error = &answer["error"];
        assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &json!(code)), "{body} {answer}");
        assert!(
            error["message"].as_str().unwrap().contains(part) && error["type"] == "invalid_request_error",
            "{answer}"
        );
    }
    let (status, answer) = server.post("/v1/chat/completions", &json!({"messages": m, "model": "gpt-4o"}));
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(server.post("/v1/chat/completions", &with(ask("x", 1), json!({"user": "y".repeat(20_000)}))).0, 413);
    assert_eq!(server.post("/v1/nothing", &m).0, 404);
    let raw = |kind: &str, body: &str| {
        let url = format!("{}/v1/chat/completions", server.url);
        agent().post(url).header("content-type", kind).send(body).unwrap().status().as_u16()
    };
    assert_eq!(
        (raw("application/json", "{"), raw("text/plain", "{}"), raw("application/json", &"[".repeat(9000))),
        (400, 415, 400)
    );
    assert_eq!(server.get("/v1/completions").0, 405);
    assert_eq!(server.get("/../../etc/passwd").0, 404);
    // After all that it still answers.
    server.ok("/v1/chat/completions", &ask("x", 1));
}
