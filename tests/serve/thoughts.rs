//! Variables of the template, and thoughts beside answers.

use crate::common;
use crate::server::{Server, agent, ask, command, with};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// ChatML that opens a thought, or writes an empty one.
pub const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
    {% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}\
    {{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}\
    {% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}";

/// A bias and a penalty of repetition that make the model write " tea" and the closing mark, and then go on freely.
pub fn ending_the_thought(server: &Server) -> Value {
    let tokens = server.ok("/tokenize", &json!({"content": " tea</think>"}))["tokens"].as_array().unwrap().clone();
    let bias: serde_json::Map<String, Value> =
        tokens.iter().zip([100, 80, 60, 40, 20]).map(|(t, b)| (t.to_string(), json!(b))).collect();
    json!({"logit_bias": bias, "repeat_penalty": 2.0})
}

#[test]
fn thoughts_are_told_beside_the_answer() {
    let Some(model) = common::model(common::SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("thinking.jinja");
    std::fs::write(&file, TEMPLATE).unwrap();
    let server = Server::spawn(command(&model).args(["--ctx", "512", "--template"]).arg(&file)).unwrap();

    let rendered = |body: Value| server.ok("/apply-template", &body)["prompt"].as_str().unwrap().to_owned();
    let hi = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert!(rendered(hi.clone()).ends_with("assistant\n<think>\n"));
    for off in [json!({"chat_template_kwargs": {"enable_thinking": false}}), json!({"enable_thinking": false})] {
        assert!(rendered(with(hi.clone(), off)).ends_with("<think>\n\n</think>\n\n"));
    }
    let history = json!({"messages": [{"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."}, {"role": "user", "content": "And?"}]});
    assert!(rendered(history).contains("<think>\nA greeting.\n</think>\n\nHello."));

    let body = with(ask("What is <think> for?", 14), ending_the_thought(&server));
    let raw = server.ok(CHAT, &with(body.clone(), json!({"reasoning_format": "none"})));
    let raw = raw["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let (thought, answer) = raw.split_once("</think>").unwrap_or_else(|| panic!("{raw:?}"));
    let answer = answer.trim_start_matches('\n');
    assert!(!thought.trim().is_empty() && !answer.is_empty(), "{raw:?}");
    let message = server.ok(CHAT, &body)["choices"][0]["message"].clone();
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!(thought.trim_end()), &json!(answer)));
    let chunks = server.stream(CHAT, &with(body.clone(), json!({"stream": true})));
    let joined =
        |key: &str| -> String { chunks.iter().filter_map(|c| c["choices"][0]["delta"][key].as_str()).collect() };
    assert_eq!((joined("reasoning_content").as_str(), joined("content").as_str()), (thought, answer));
    // The same text behind a closed thought is an answer; a form is never parted.
    let closed = server.ok(CHAT, &with(body.clone(), json!({"chat_template_kwargs": {"enable_thinking": false}})));
    assert_eq!(closed["choices"][0]["message"].get("reasoning_content"), None);
    let formed = server.ok(CHAT, &with(ask("hi", 8), json!({"guided_choice": ["yes", "no"]})));
    assert_eq!(formed["choices"][0]["message"].get("reasoning_content"), None);
    // A thought that was cut off is gone on with, and so is an answer behind one.
    let user = json!({"role": "user", "content": "hi"});
    let history = |text: &str| json!({"messages": [user, {"role": "assistant", "content": text, "reasoning_content": "So </think>"}]});
    assert!(rendered(history("")).ends_with("assistant\n<think>\nSo </think>"));
    assert!(rendered(history("Yes")).ends_with("<think>\nSo </think>\n</think>\n\nYes"));
    let cut =
        json!({"messages": [body["messages"][0], {"role": "assistant", "content": null, "reasoning_content": " tea"}]});
    let rest = server.ok(CHAT, &with(with(body.clone(), cut), json!({"max_completion_tokens": 8})));
    let message = &rest["choices"][0]["message"];
    assert!(message["reasoning_content"].is_string(), "{rest}");
    // Ollama's names.
    let options =
        with(ending_the_thought(&server), json!({"temperature": 0, "num_predict": 14, "top_p": 1, "top_k": 0}));
    let mut ollama = json!({"messages": body["messages"], "stream": false, "options": options});
    let answered = server.ok("/api/chat", &ollama);
    assert_eq!(
        (&answered["message"]["thinking"], &answered["message"]["content"]),
        (&json!(thought.trim_end()), &json!(answer))
    );
    ollama["think"] = json!(false);
    assert_eq!(server.ok("/api/chat", &ollama)["message"].get("thinking"), None);

    // What the template does not read is named, what is no variable refused.
    let unread = with(ask("hi", 1), json!({"chat_template_kwargs": {"colour": "red"}}));
    let response = agent().post(format!("{}{CHAT}", server.url)).send_json(&unread).unwrap();
    assert!(response.headers()["x-bidpo-warning"].to_str().unwrap().contains("chat_template_kwargs.colour"));
    for (wrong, param) in [
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
        (json!({"reasoning_format": "x"}), "reasoning_format"),
    ] {
        let (status, error) = server.post(CHAT, &with(ask("hi", 1), wrong));
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)));
    }
}
