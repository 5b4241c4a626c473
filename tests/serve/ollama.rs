//! Ollama's API: the same answers in another shape.

use crate::common;
use crate::server::{DIAL, Server, agent, ask, with};
use serde_json::{Value, json};

/// Ollama's own sampling defaults, off.
fn greedy(n: usize) -> Value {
    json!({"temperature": 0, "num_predict": n, "repeat_penalty": 1.0, "num_ctx": 2048})
}

fn lines(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let mut response = agent().post(format!("{}{path}", server.url)).send_json(body).unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.body_mut().read_to_string().unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn ollamas_api_gives_the_same_answers() {
    let Some(server) = Server::start(&["--ctx", "512"]) else { return };
    let base = common::SMOL.trim_end_matches(".gguf");
    let get = |path: &str| -> Value { serde_json::from_str(&server.get(path).1).unwrap() };
    assert!(get("/api/version")["version"].is_string());
    let tags = get("/api/tags");
    let names: Vec<&str> = tags["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, [base, &format!("{base}@misconceptions"), &format!("{base}@{DIAL}")]);
    assert!(
        tags["models"][0]["size"].as_u64().unwrap() > 1_000_000 && tags["models"][0]["details"]["format"] == "gguf"
    );
    let show = server.ok("/api/show", &json!({"model": format!("{base}:latest")}));
    assert_eq!(show["model_info"]["llama.context_length"], 512);
    // The model's template shows no tools.
    assert_eq!(show["capabilities"], json!(["completion"]));

    let question = "How do I make a cup of tea?";
    let messages = json!([{"role": "user", "content": question}]);
    for name in [base.to_owned(), format!("{base}@{DIAL}:latest")] {
        let want = server.ok("/v1/chat/completions", &with(ask(question, 12), json!({"model": name})));
        let text = want["choices"][0]["message"]["content"].as_str().unwrap();
        let body = json!({"model": name, "messages": messages, "options": greedy(12)});
        let parts = lines(&server, "/api/chat", &body);
        let (last, before) = parts.split_last().unwrap();
        assert!(before.len() > 8 && before.iter().all(|p| p["done"] == false && p["model"] == json!(name)));
        assert_eq!(before.iter().map(|p| p["message"]["content"].as_str().unwrap()).collect::<String>(), text);
        assert_eq!(
            (&last["done"], &last["done_reason"], &last["eval_count"]),
            (&json!(true), &json!("length"), &json!(12))
        );
        assert_eq!(last["prompt_eval_count"], want["usage"]["prompt_tokens"]);
        assert!(last["eval_duration"].as_u64().unwrap() > 0 && last["created_at"].as_str().unwrap().ends_with('Z'));
        let scored = lines(&server, "/api/chat", &with(body.clone(), json!({"logprobs": true, "top_logprobs": 2})));
        let scored: Vec<&Value> = scored.iter().filter_map(|p| p["logprobs"].as_array()).flatten().collect();
        assert!(scored.len() == 12 && scored.iter().all(|t| t["top_logprobs"][1]["logprob"].is_number()));
        assert_eq!(scored.iter().map(|t| t["token"].as_str().unwrap()).collect::<String>(), text);
        let whole = server.ok("/api/chat", &with(body, json!({"stream": false})));
        assert_eq!((&whole["message"]["content"], &whole["done"]), (&json!(text), &json!(true)));
        let body = json!({"model": name, "prompt": question, "options": greedy(12), "stream": false});
        assert_eq!(server.ok("/api/generate", &body)["response"], text);
        let joined: String = lines(&server, "/api/generate", &with(body, json!({"stream": true})))
            .iter()
            .map(|p| p["response"].as_str().unwrap())
            .collect();
        assert_eq!(joined, text);
    }
    // As it stands, with the field steering, in a form.
    let body =
        json!({"prompt": question, "raw": true, "options": greedy(4), "stream": false, "steering": [{"vector": DIAL}]});
    let completion = json!({"prompt": question, "max_tokens": 4, "temperature": 0, "steering": [{"vector": DIAL}]});
    assert_eq!(
        server.ok("/api/generate", &body)["response"],
        server.ok("/v1/completions", &completion)["choices"][0]["text"]
    );
    let body = json!({"messages": messages, "format": {"enum": ["yes", "no"]}, "stream": false});
    assert!(["\"yes\"", "\"no\""].contains(&server.ok("/api/chat", &body)["message"]["content"].as_str().unwrap()));
    // The model is there; nothing is asked.
    for (path, body) in
        [("/api/chat", json!({"messages": []})), ("/api/generate", json!({"model": base, "keep_alive": 0}))]
    {
        assert_eq!(server.ok(path, &body)["done_reason"], "load");
    }
    for (path, body, status) in [
        ("/api/chat", json!({"model": "nobody", "messages": messages}), 404),
        ("/api/chat", json!({"messages": messages, "format": "xml"}), 400),
        ("/api/chat", json!({"messages": messages, "options": {"temperature": -1}}), 400),
        ("/api/generate", json!({"prompt": "x", "images": ["AAAA"]}), 400),
        ("/api/show", json!({"model": "nobody"}), 404),
        ("/api/embed", json!({"input": "x"}), 400),
        ("/api/pull", json!({"model": "x"}), 400),
    ] {
        let (got, answer) = server.post(path, &body);
        assert!(got == status && answer["error"].is_string(), "{path} {body}: {got} {answer}");
    }
}
