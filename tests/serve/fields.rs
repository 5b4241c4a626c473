//! Fields that clients of OpenAI's API and of other servers send: taken, or the same as not set.

use crate::server::{Server, agent, ask, with};
use serde_json::{Value, json};

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn fields_that_ask_for_nothing_change_nothing() {
    let Some(server) = Server::start(&["--ctx", "64"]) else { return };
    let plain = ask("Name a tree.", 6);
    let want = server.ok("/v1/chat/completions", &plain)["choices"].clone();
    for more in [
        json!({"top_k": -1}),
        json!({"top_k": 0, "stop": "", "logit_bias": {}, "top_logprobs": 0, "logprobs": false}),
        json!({"stop": [], "stream_options": {"include_usage": true}}),
        json!({"stop": ["", null], "user": "ann", "metadata": {"a": "b"}, "store": true, "verbosity": "low", "service_tier": "auto"}),
        json!({"seed": -1, "parallel_tool_calls": true, "tools": [], "tool_choice": "auto", "best_of": 1, "n": 1}),
        json!({"prediction": {"type": "content", "content": "Oak"}, "modalities": ["text"], "response_format": {"type": "text"}}),
        json!({"cache_control": {"type": "ephemeral"}, "max_tokens": 32768}),
        json!({"max_tokens": -1}),
        json!({"max_completion_tokens": 6.0, "max_tokens": null, "temperature": 0.0, "n": null, "stop": null, "seed": null,
               "stream": null, "stream_options": null, "logit_bias": null, "logprobs": null, "top_logprobs": null, "user": null,
               "frequency_penalty": null, "presence_penalty": null, "top_p": null, "top_k": null, "tools": null,
               "tool_choice": null, "response_format": null, "functions": null, "audio": null, "modalities": null,
               "reasoning_effort": null, "steering": null, "scope": null, "model": null, "grammar": null}),
        json!({"messages": [{"role": "user", "name": "ann", "content": "Name a tree."}], "model": ""}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Name a "}, {"type": "text", "text": "tree.",
               "cache_control": {"type": "ephemeral"}}]}]}),
    ] {
        assert_eq!(server.ok("/v1/chat/completions", &with(plain.clone(), more.clone()))["choices"], want, "{more}");
    }
    // Null content of the assistant is empty content.
    let history = |content: Value| {
        json!({"messages": [{"role": "user", "content": "Name a tree."}, {"role": "assistant", "content": content},
               {"role": "user", "content": "One."}]})
    };
    let answer = |content| server.ok("/v1/chat/completions", &with(plain.clone(), history(content)))["choices"].clone();
    assert_eq!(answer(Value::Null), answer(json!("")));
    // A limit that is too large ends where the context does.
    for more in [json!({"max_tokens": 32768}), json!({"max_tokens": -1})] {
        let mut body = with(plain.clone(), with(json!({"logit_bias": {"253": 100}}), more));
        body.as_object_mut().unwrap().remove("max_completion_tokens");
        let answer = server.ok("/v1/chat/completions", &body);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["total_tokens"], 65, "{answer}");
    }
    let prompt = json!({"prompt": "One day", "temperature": 0, "logit_bias": {"253": 100}});
    let count = |more| server.ok("/v1/completions", &with(prompt.clone(), more))["usage"]["completion_tokens"].clone();
    assert_eq!((count(json!({})), count(json!({"max_tokens": null}))), (json!(16), json!(16)));
    assert!(count(json!({"max_tokens": -1})).as_i64().unwrap() > 40);
    assert_eq!(count(json!({"max_tokens": 0})), json!(0));
}

#[test]
fn unknown_fields_are_ignored_and_named() {
    let Some(mut server) = Server::start_with_stderr(&["--ctx", "256"]) else { return };
    let send = |body: &Value| {
        let response = agent().post(format!("{}/v1/chat/completions", server.url)).send_json(body).unwrap();
        assert_eq!(response.status().as_u16(), 200);
        response.headers().get("x-bidpo-warning").map(|v| v.to_str().unwrap().to_owned())
    };
    let plain = ask("x", 1);
    assert_eq!(send(&plain), None);
    let body = with(plain.clone(), json!({"typical_p": 1, "xtc_probability": 0.1, "a\nb\u{e9}": 1}));
    for body in [body.clone(), with(body, json!({"stream": true}))] {
        let warning = send(&body).unwrap();
        assert_eq!(warning, "ignored unknown parameters: a\\nb\\u{e9}, typical_p, xtc_probability");
    }
    let body = json!({"messages": [{"role": "user", "id": 1, "content": "x"}], "max_tokens": 1});
    assert_eq!(send(&body).unwrap(), "ignored unknown parameters: messages[].id");
    let said = server.stderr();
    assert_eq!(said.matches("typical_p").count(), 1, "{said}");
    assert!(
        said.contains("bidpo: ignored unknown parameters of a request: ") && said.contains("--strict-api"),
        "{said}"
    );
}

#[test]
fn the_assistants_last_message_is_continued() {
    let Some(server) = Server::start(&[]) else { return };
    let user = json!({"role": "user", "content": "How do I make a cup of tea?"});
    let whole = server.ok("/v1/chat/completions", &with(ask("", 24), json!({"messages": [user], "logprobs": true})));
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    // Up to the end of a word, so that the text has the answer's own tokens.
    let cut = (8..16).find(|&i| tokens[i]["token"].as_str().unwrap().starts_with(' ')).unwrap();
    let start: String = tokens[..cut].iter().map(|t| t["token"].as_str().unwrap()).collect();
    let messages = json!({"messages": [user, {"role": "assistant", "content": start}]});
    let more =
        |fields: Value| server.ok("/v1/chat/completions", &with(with(ask("", 24 - cut), messages.clone()), fields));
    let continued = more(json!({}));
    assert_eq!(format!("{start}{}", text(&continued)), text(&whole));
    for fields in [json!({"continue_final_message": true}), json!({"add_generation_prompt": false})] {
        assert_eq!(more(fields)["choices"], continued["choices"]);
    }
    // As a new message the prompt is longer: the end of the turn, and the head of the next.
    let new = more(json!({"continue_final_message": false}));
    assert_eq!(more(json!({"add_generation_prompt": true}))["choices"], new["choices"]);
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_i64().unwrap();
    assert!(prompt(&new) > prompt(&continued) + 2);
    let (status, _) = server.post(
        "/v1/chat/completions",
        &with(
            with(ask("", 1), messages.clone()),
            json!({"continue_final_message": true, "add_generation_prompt": true}),
        ),
    );
    assert_eq!(status, 400);
    let (status, error) =
        server.post("/v1/chat/completions", &with(ask("x", 1), json!({"continue_final_message": true})));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("continue_final_message")));
    // Control texts in the message stay text.
    let body = with(ask("", 1), json!({"messages": [user, {"role": "assistant", "content": "<|im_end|>"}]}));
    let empty = with(ask("", 1), json!({"messages": [user, {"role": "assistant", "content": ""}]}));
    assert!(prompt(&server.ok("/v1/chat/completions", &body)) > prompt(&server.ok("/v1/chat/completions", &empty)) + 3);
}
