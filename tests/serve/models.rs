//! Names of models, steered ones among them; tokenizer and template; endpoints of other servers.

use crate::common;
use crate::server::{DIAL, Server, ask, with};
use serde_json::{Value, json};

const QUESTION: &str = "How do I make a cup of tea?";

fn get(server: &Server, path: &str) -> Value {
    let (status, text) = server.get(path);
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_model_name_steers() {
    let base = common::SMOL.trim_end_matches(".gguf");
    let Some(server) =
        Server::start(&["--alias", &format!("flower=@{DIAL}:0.5"), "--alias", "both=flower@misconceptions:2%"])
    else {
        return;
    };
    let models = get(&server, "/v1/models");
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [base, &format!("{base}@misconceptions"), &format!("{base}@{DIAL}"), "flower", "both"]);
    assert_eq!(models, get(&server, "/models"));
    let steered = get(&server, "/v1/models/both");
    assert_eq!(steered["parent"], base);
    assert_eq!(
        steered["steering"],
        json!([{"vector": DIAL, "scale": 0.5}, {"vector": "misconceptions", "scale": "2%"}])
    );

    // The name does what the field does, on every endpoint.
    let chat = with(ask(QUESTION, 10), json!({"logprobs": true}));
    let completion = json!({"prompt": QUESTION, "max_tokens": 3, "temperature": 0, "logprobs": 1, "echo": true});
    let score = json!({"messages": [{"role": "user", "content": QUESTION}], "answer": "You boil water."});
    let mut seen = Vec::new();
    for (name, steering) in [
        (base.to_owned(), json!([])),
        (format!("{base}@{DIAL}"), json!([{"vector": DIAL}])),
        (
            format!("{base}@{DIAL}:-1.5,misconceptions:3%"),
            json!([{"vector": DIAL, "scale": -1.5}, {"vector": "misconceptions", "scale": "3%"}]),
        ),
        ("flower".to_owned(), json!([{"vector": DIAL, "scale": 0.5}])),
        ("flower:latest".to_owned(), json!([{"vector": DIAL, "scale": 0.5}])),
    ] {
        for (path, body, what) in [
            ("/v1/chat/completions", &chat, "choices"),
            ("/chat/completions", &chat, "choices"),
            ("/v1/completions", &completion, "choices"),
            ("/v1/score", &score, "tokens"),
        ] {
            let by_name = server.ok(path, &with(body.clone(), json!({"model": name})));
            let by_field = server.ok(path, &with(body.clone(), json!({"steering": steering})));
            assert_eq!((&by_name["model"], &by_name[what]), (&json!(name), &by_field[what]), "{path} {name}");
            if path == "/v1/score" {
                seen.push(by_name["logprob"].as_f64().unwrap());
            }
        }
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[2] != seen[3] && seen[3] == seen[4], "{seen:?}");
    // A request's own steering comes on top.
    let on_top = with(chat.clone(), json!({"model": "flower", "steering": [{"vector": DIAL, "scale": 0.25}]}));
    let fields = json!({"steering": [{"vector": DIAL, "scale": 0.5}, {"vector": DIAL, "scale": 0.25}]});
    assert_eq!(
        server.ok("/v1/chat/completions", &on_top)["choices"],
        server.ok("/v1/chat/completions", &with(chat.clone(), fields))["choices"]
    );

    for (name, part) in [
        (format!("{base}@honest:2"), "misconceptions, plain-vs-flowery"),
        (format!("{base}@{DIAL}:loud"), "misconceptions, plain-vs-flowery"),
        (format!("{base}@{DIAL}:3.4e38"), "not finite"),
        (format!("{base}@"), "MODEL"),
        ("gpt-4o".to_owned(), "@VECTOR:SCALE"),
    ] {
        let (status, answer) = server.post("/v1/chat/completions", &with(chat.clone(), json!({"model": name})));
        let error = &answer["error"];
        assert_eq!((status, &error["code"], &error["param"]), (404, &json!("model_not_found"), &json!("model")));
        assert!(error["message"].as_str().unwrap().contains(&part.replace("MODEL", base)), "{name}: {error}");
    }
    // Entries of the field are counted without those of the name.
    let body = with(chat, json!({"model": "both", "steering": [{"vector": "nobody"}]}));
    assert_eq!(server.post("/v1/chat/completions", &body).1["error"]["param"], "steering[0].vector");
}

#[test]
fn aliases_are_checked_at_start() {
    let Some(model) = common::model(common::SMOL) else { return };
    for (alias, part) in [
        ("x=@nobody", "misconceptions, plain-vs-flowery"),
        ("x=other@plain-vs-flowery", "neither"),
        ("a@b=@misconceptions", "would be read as"),
    ] {
        let mut command = crate::server::command(&model);
        let out =
            command.args(["--port", "0", "--alias", alias]).stderr(std::process::Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains(part), "{alias}: {said}");
    }
}

#[test]
fn tokens_and_templates_are_told() {
    let Some(server) = Server::start(&["--ctx", "256"]) else { return };
    let text = "Caf\u{e9} tea<|im_end|>";
    let tokens = server.ok("/tokenize", &json!({"content": text}));
    let ids = tokens["tokens"].as_array().unwrap();
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(ids.len()), &json!(256)));
    assert_eq!(server.ok("/detokenize", &json!({"tokens": ids}))["content"], text);
    assert_eq!(server.ok("/v1/detokenize", &json!({"tokens": ids}))["prompt"], text);
    let pieces = server.ok("/tokenize", &json!({"content": text, "with_pieces": true}));
    let of = |p: &Value| match &p["piece"] {
        Value::String(s) => s.as_bytes().to_vec(),
        bytes => bytes.as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect(),
    };
    let bytes: Vec<u8> = pieces["tokens"].as_array().unwrap().iter().flat_map(of).collect();
    assert_eq!(bytes, text.as_bytes());
    // As text, the control token is several.
    let plain = server.ok("/tokenize", &json!({"content": text, "parse_special": false}));
    assert!(plain["count"].as_u64() > tokens["count"].as_u64());
    // The form of vLLM, and a chat.
    let info = get(&server, "/tokenizer_info");
    let eos = server.ok("/tokenize", &json!({"prompt": info["eos_token"], "add_special_tokens": false}));
    assert_eq!(eos["count"], 1);
    let chat = json!({"messages": [{"role": "user", "content": QUESTION}]});
    let rendered = server.ok("/apply-template", &chat)["prompt"].clone();
    assert!(rendered.as_str().unwrap().ends_with("<|im_start|>assistant\n"), "{rendered}");
    let n = server.ok("/v1/chat/completions", &with(ask(QUESTION, 1), json!({})))["usage"]["prompt_tokens"].clone();
    assert_eq!(
        (&server.ok("/tokenize", &chat)["count"], &server.ok("/tokenize", &json!({"content": rendered}))["count"]),
        (&n, &n)
    );
    let open =
        with(chat, json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "One, "}]}));
    assert!(server.ok("/apply-template", &open)["prompt"].as_str().unwrap().ends_with("assistant\nOne, "));
    let slots = get(&server, "/slots");
    assert!(slots.as_array().unwrap().iter().all(|s| s["is_processing"] == false), "{slots}");
    assert_eq!(
        (&slots[0]["id"], &slots[0]["n_ctx"]),
        (&json!(0), &get(&server, "/props")["default_generation_settings"]["n_ctx"])
    );
    let props = get(&server, "/props");
    assert_eq!((&props["default_generation_settings"]["n_ctx"], &props["total_slots"]), (&json!(256), &json!(4)));
    assert!(
        props["chat_template"].as_str().unwrap().contains("im_start") && props["model_path"] == common::SMOL,
        "{props}"
    );
    for (path, body) in
        [("/tokenize", json!({})), ("/detokenize", json!({"tokens": [1e9]})), ("/apply-template", json!({}))]
    {
        assert_eq!(server.post(path, &body).0, 400, "{path}");
    }
    assert_eq!((server.get("/health").0, server.get("/v1/health").0), (200, 200));
    for path in ["/v1/embeddings", "/embeddings", "/v1/moderations", "/v1/images/generations", "/v1/audio/translations"]
    {
        let (status, answer) = server.post(path, &json!({"input": "x"}));
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("unsupported_endpoint")), "{path}");
    }

    // Evaluation programs drop the entry behind the prompt's: it is there, also where the model ends its turn at once.
    let end = eos["tokens"][0].as_u64().unwrap();
    let ids = &server.ok("/tokenize", &json!({"content": "One day I went to the"}))["tokens"];
    let n = ids.as_array().unwrap().len();
    for (bias, last) in [(json!({}), None), (json!({end.to_string(): 100}), Some(end))] {
        let body =
            json!({"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": true, "temperature": 0, "logit_bias": bias});
        let choice = &server.ok("/v1/completions", &body)["choices"][0];
        let told = |key: &str| choice["logprobs"][key].as_array().unwrap().clone();
        assert_eq!([told("tokens").len(), told("token_logprobs").len(), told("top_logprobs").len()], [n + 1; 3]);
        assert!(told("token_logprobs")[n].as_f64().unwrap() < 0.0);
        assert!(last.is_none_or(|end| told("token_ids")[n] == end && choice["text"] == "One day I went to the"));
        let streamed = server.stream("/v1/completions", &with(body, json!({"stream": true})));
        let n_streamed: usize =
            streamed.iter().filter_map(|p| p["choices"][0]["logprobs"]["tokens"].as_array()).map(Vec::len).sum();
        assert_eq!(n_streamed, n + 1);
    }
}
