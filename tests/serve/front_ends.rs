//! Requests as front-ends and libraries send them, in our own words: each is answered as the plain request is, or refused with a
//! sentence that names the field.

use crate::common;
use crate::server::{DIAL, Server, ask, command, with};
use crate::thoughts::TEMPLATE;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// What a front-end adds to a plain greedy chat.
fn additions() -> Vec<(&'static str, Value)> {
    vec![
        ("LibreChat", json!({"user": "u1", "stream": false, "include_reasoning": true, "web_search": false})),
        (
            "Open WebUI",
            json!({"chat_id": "c", "session_id": "s", "id": "i", "features": {"web_search": false}, "tool_ids": null, "files": [],
                   "background_tasks": {"title": false}, "stream_options": {"include_usage": true}, "metadata": {"task": "chat"}}),
        ),
        (
            "SillyTavern",
            json!({"chat_completion_source": "custom", "char_name": "Ann", "group_names": [], "reasoning_effort": "auto", "top_k": 0,
                   "top_a": 0, "typical_p": 1, "tfs": 1, "sampler_order": [6, 0, 1], "repetition_penalty": 1, "min_p": 0, "seed": -1,
                   "logit_bias": {}, "stop": [], "n": 1, "json_schema": {}, "grammar": "", "add_bos_token": true}),
        ),
        ("a form", json!({"temperature": "0", "top_p": "1", "seed": "", "n": "1", "stream": "false", "top_k": "-1"})),
        (
            "Continue",
            json!({"max_tokens": 4096, "stop": null, "prediction": {"type": "content", "content": "x"}, "keep_alive": 1800}),
        ),
        (
            "LangChain",
            json!({"n": 1, "stop": null, "tools": null, "logprobs": null, "frequency_penalty": 0, "response_format": null}),
        ),
        (
            "LiteLLM",
            json!({"metadata": {"a": "b"}, "user": "x", "drop_params": true, "extra_body": {"top_k": -1, "min_p": null}}),
        ),
        (
            "Vercel AI SDK",
            json!({"parallel_tool_calls": true, "tool_choice": "auto", "store": false, "service_tier": "flex", "verbosity": "low"}),
        ),
        (
            "other limits",
            json!({"max_completion_tokens": null, "n_predict": 6, "max_new_tokens": 100, "repeat_penalty": 0, "stop": vec!["~~"; 40]}),
        ),
        (
            "Zed",
            json!({"tools": [], "tool_choice": null, "parallel_tool_calls": false, "prompt_cache_key": "k", "stop": [], "max_completion_tokens": 6}),
        ),
        ("aider", json!({"stream": false, "num_retries": 0, "cache_control": {"type": "ephemeral"}})),
        (
            "llama-server's page",
            json!({"cache_prompt": true, "samplers": "kt", "timings_per_token": true, "return_progress": true, "id_slot": -1}),
        ),
        (
            "vLLM",
            json!({"ignore_eos": false, "include_stop_str_in_output": false, "skip_special_tokens": true, "best_of": 1, "use_beam_search": false}),
        ),
        ("Ollama's fields", json!({"options": {"num_ctx": 4096}, "keep_alive": "5m", "format": ""})),
        (
            "functions that are none",
            json!({"functions": [], "function_call": "none", "tools": [], "tool_choice": "none"}),
        ),
        (
            "no thoughts",
            json!({"reasoning_effort": "low", "thinking": {"type": "disabled"}, "chat_template_kwargs": {}}),
        ),
        (
            "a form of the answer that is none",
            json!({"response_format": {"type": "text"}, "modalities": ["text"], "audio": null}),
        ),
    ]
}

/// Messages that say what the plain request says, and longer histories.
fn histories() -> Vec<(&'static str, Value, bool)> {
    let tree = json!({"role": "user", "content": "Name a tree."});
    let last = json!({"role": "user", "content": "Another."});
    vec![
        ("parts", json!([{"role": "user", "content": [{"type": "text", "text": "Name a tree."}]}]), true),
        (
            "parts of a response",
            json!([{"role": "user", "content": [{"type": "input_text", "text": "Name a tree."}], "name": "ann"}]),
            true,
        ),
        (
            "one part",
            json!([{"role": "user", "content": {"type": "text", "text": "Name a tree."}, "images": []}]),
            true,
        ),
        ("ids", json!([{"role": "user", "content": "Name a tree.", "id": "m1", "timestamp": 5, "models": []}]), true),
        ("developer", json!([{"role": "developer", "content": "Be brief."}, tree]), false),
        ("empty answer", json!([tree, {"role": "assistant", "content": ""}, last]), false),
        (
            "answer of the API",
            json!([tree, {"role": "assistant", "content": "Oak.", "refusal": null, "audio": null, "function_call": null,
            "tool_calls": [], "annotations": [], "reasoning_content": null, "provider_specific_fields": {"a": null}}, last]),
            false,
        ),
        ("a refusal", json!([tree, {"role": "assistant", "content": null, "refusal": "No."}, last]), false),
        ("prefix", json!([tree, {"role": "assistant", "content": "An oak", "prefix": true}]), false),
    ]
}

#[test]
fn what_front_ends_send_is_answered() {
    let Some(server) = Server::start(&["--ctx", "512"]) else { return };
    let plain = ask("Name a tree.", 6);
    let want = server.ok(CHAT, &plain)["choices"].clone();
    for (who, more) in additions() {
        assert_eq!(server.ok(CHAT, &with(plain.clone(), more.clone()))["choices"], want, "{who}: {more}");
    }
    for (what, messages, same) in histories() {
        let answer = server.ok(CHAT, &with(plain.clone(), json!({"messages": messages})))["choices"].clone();
        assert_eq!(answer == want, same, "{what}: {answer}");
    }
    // Steering in the place where the Python client takes it.
    let steering = json!([{"vector": DIAL, "scale": 1}]);
    let steered = server.ok(CHAT, &with(plain.clone(), json!({"steering": steering})))["choices"].clone();
    assert_ne!(steered, want);
    assert_eq!(
        server.ok(CHAT, &with(plain.clone(), json!({"extra_body": {"steering": steering}})))["choices"],
        steered
    );
    // Schemas that libraries make of their types.
    for schema in [
        json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"n": {"type": "integer",
            "minimum": -9_007_199_254_740_991_i64, "maximum": 9_007_199_254_740_991_i64}}, "required": ["n"], "additionalProperties": false}),
        json!({"title": "Tree", "type": "object", "properties": {"age": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0},
            {"type": "null"}], "default": null, "title": "Age"}, "kind": {"const": "oak", "type": "string"}}, "required": ["kind"]}),
    ] {
        let form = json!({"type": "json_schema", "json_schema": {"name": "tree", "strict": true, "schema": schema}});
        let answer = server.ok(CHAT, &with(ask("Name a tree.", 60), json!({"response_format": form})));
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object()), "{schema}: {text}");
    }
    // Refused, with the field's name and what to do.
    let image =
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]);
    for (more, param, word) in [
        (json!({"messages": image}), "messages[0].content[0].type", "only text"),
        (
            json!({"messages": [{"role": "user", "content": "x", "images": ["AA"]}]}),
            "messages[0].images",
            "not supported",
        ),
        (json!({"functions": [{"name": "f"}]}), "functions", "send tools"),
        (json!({"function_call": {"name": "f"}}), "function_call", "send tools"),
        (json!({"modalities": ["text", "audio"]}), "modalities", "not supported"),
        (json!({"seed": "tree"}), "seed", "whole number"),
        (json!({"temperature": "hot"}), "temperature", "number"),
        (json!({"extra_body": {"vector": DIAL}}), "vector", "steering"),
        (json!({"top_logprobs": 3}), "top_logprobs", "logprobs"),
    ] {
        let (status, answer) = server.post(CHAT, &with(plain.clone(), more.clone()));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{more}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(word), "{more}: {answer}");
    }
    // Ollama's own fields on its own path.
    for more in [
        json!({"keep_alive": -1, "options": {"num_predict": "6", "temperature": "0", "mirostat": 0, "num_gqa": 1, "stop": []}}),
        json!({"keep_alive": "5m", "format": "", "think": null, "tools": [], "options": {"num_predict": 6, "temperature": 0, "seed": 3}}),
    ] {
        let off = json!({"model": common::SMOL.trim_end_matches(".gguf"), "stream": false, "repeat_penalty": 1.0});
        let answer = server.ok("/api/chat", &with(with(off, more.clone()), json!({"messages": plain["messages"]})));
        assert_eq!(answer["message"]["content"], want[0]["message"]["content"], "{more}");
    }
}

#[test]
fn thinking_is_turned_off_in_every_way() {
    let Some(model) = common::model(common::SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("thinking.jinja");
    std::fs::write(&file, TEMPLATE).unwrap();
    let server = Server::spawn(command(&model).args(["--ctx", "256", "--template"]).arg(&file)).unwrap();
    let closed = |more: Value| {
        let body = with(json!({"messages": [{"role": "user", "content": "hi"}]}), more);
        server.ok("/apply-template", &body)["prompt"].as_str().unwrap().ends_with("<think>\n\n</think>\n\n")
    };
    for off in [
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"chat_template_kwargs": "{\"enable_thinking\": false}"}),
        json!({"chat_template_kwargs": {"enable_thinking": "false"}}),
        json!({"extra_body": {"chat_template_kwargs": {"enable_thinking": false}}}),
        json!({"enable_thinking": false}),
        json!({"enable_thinking": "false"}),
        json!({"thinking": {"type": "disabled"}}),
        json!({"thinking": false}),
        json!({"think": false}),
        json!({"reasoning": {"enabled": false}}),
        json!({"reasoning": {"effort": "none"}}),
        json!({"reasoning_effort": "none"}),
        json!({"reasoning_budget": 0}),
        json!({"thinking": {"type": "enabled", "budget_tokens": 0}}),
    ] {
        assert!(closed(off.clone()), "{off}");
    }
    for on in [
        json!({}),
        json!({"thinking": {"type": "enabled", "budget_tokens": 100}}),
        json!({"enable_thinking": true}),
        json!({"reasoning": {"effort": "high"}}),
        json!({"reasoning_effort": "low"}),
    ] {
        assert!(!closed(on.clone()), "{on}");
    }
}
