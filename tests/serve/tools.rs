//! Tools: shown by the template, called within a grammar, and told in the forms of OpenAI and Ollama.

use crate::common;
use crate::server::{Server, ask, command, with};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// ChatML with tools as Hermes writes them: a description in the system message, calls as JSON between marks.
pub const HERMES: &str = "{% if tools %}{{ '<|im_start|>system\nTools:\n' }}{% for t in tools %}{{ t.function | tojson + '\n' }}\
    {% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}\
    {% for c in m.tool_calls or [] %}{{ '<tool_call>\n' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson \
    + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The same with Mistral's list, which wants ids of nine characters.
fn mistral() -> String {
    let begin = HERMES.find("{% for c in").unwrap();
    let end = begin + HERMES[begin..].find("{% endfor %}").unwrap() + "{% endfor %}".len();
    let calls = "{% if m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}{% if c.id | length != 9 %}\
        {{ raise_exception('ids have nine characters') }}{% endif %}{{ {'name': c.function.name, 'arguments': \
        c.function.arguments, 'id': c.id} | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}{{ ']' }}{% endif %}";
    format!("{}{calls}{}", &HERMES[..begin], &HERMES[end..])
}

/// The same with Llama 3's bare object.
fn llama() -> String {
    HERMES
        .replace("'<tool_call>\n' + ", "")
        .replace(" + '\n</tool_call>'", "")
        .replace("'arguments': c", "'parameters': c")
}

/// The same with Qwen3-Coder's tags, GLM's, and DeepSeek's marks, whose template takes arguments as a text and shows calls beside a
/// content that is null.
fn tagged() -> [String; 3] {
    let begin = HERMES.find("{% for c in").unwrap();
    let end = begin + HERMES[begin..].find("{% endfor %}").unwrap() + "{% endfor %}".len();
    let calls = |text: &str| format!("{}{text}{}", &HERMES[..begin], &HERMES[end..]);
    let value = "{{ v if v is string else v | tojson }}";
    let coder = calls(&format!(
        "{{% for c in m.tool_calls or [] %}}{{{{ '<tool_call>\n<function=' + c.function.name + '>\n' }}}}{{% for k, v in \
         c.function.arguments | items %}}{{{{ '<parameter=' + k + '>\n' }}}}{value}{{{{ '\n</parameter>\n' }}}}{{% endfor %}}\
         {{{{ '</function>\n</tool_call>' }}}}{{% endfor %}}"
    ));
    let glm = calls(&format!(
        "{{% for c in m.tool_calls or [] %}}{{{{ '<tool_call>' + c.function.name + '\n' }}}}{{% for k, v in c.function.arguments | \
         items %}}{{{{ '<arg_key>' + k + '</arg_key>\n<arg_value>' }}}}{value}{{{{ '</arg_value>\n' }}}}{{% endfor %}}\
         {{{{ '</tool_call>' }}}}{{% endfor %}}"
    ));
    let deepseek = calls(
        "{% if m.content is none %}{{ '<｜tool▁calls▁begin｜>' }}{% for c in m.tool_calls %}{{ '<｜tool▁call▁begin｜>' + c.type + \
         '<｜tool▁sep｜>' + c.function.name + '\n```json\n' + c.function.arguments + '\n```<｜tool▁call▁end｜>' }}{% endfor %}\
         {{ '<｜tool▁calls▁end｜>' }}{% endif %}",
    );
    [coder, glm, deepseek.replace("'\n' + m.content }}", "'\n' + (m.content or '') }}")]
}

/// The same with a call of Python (LFM), with Kimi's ids, which alone hold the names, and with Functionary's recipients, whose mark ends
/// the generation prompt.
fn unlike() -> [String; 3] {
    let begin = HERMES.find("{% for c in").unwrap();
    let end = begin + HERMES[begin..].find("{% endfor %}").unwrap() + "{% endfor %}".len();
    let calls = |text: &str| format!("{}{text}{}", &HERMES[..begin], &HERMES[end..]);
    let python = calls(
        "{% for c in m.tool_calls or [] %}{{ '<|tool_call_start|>[' + c.function.name + '(' }}{% for k, v in \
         c.function.arguments | items %}{{ (', ' if not loop.first else '') + k + '=' + v | tojson }}{% endfor %}\
         {{ ')]<|tool_call_end|>' }}{% endfor %}",
    );
    let kimi = calls(
        "{% if m.tool_calls %}{{ '<|tool_calls_section_begin|>' }}{% for c in m.tool_calls %}{{ '<|tool_call_begin|>' + c.id + \
         '<|tool_call_argument_begin|>' + c.function.arguments + '<|tool_call_end|>' }}{% endfor %}\
         {{ '<|tool_calls_section_end|>' }}{% endif %}",
    );
    let functionary = calls(
        "{% for c in m.tool_calls or [] %}{{ '>>>' + c.function.name + '\n' + c.function.arguments }}{% endfor %}",
    );
    let text =
        "'\n' + (m.content if m.role != 'assistant' else '' if m.content is none else '>>>all\n' + m.content) }}";
    let functionary = functionary.replace("'\n' + m.content }}", text).replace("assistant\n' }}", "assistant\n>>>' }}");
    [python, kimi, functionary]
}

pub fn start(template: &str, folder: &std::path::Path) -> Option<Server> {
    let file = folder.join("tools.jinja");
    std::fs::write(&file, template).unwrap();
    Server::spawn(command(&common::model(common::SMOL)?).args(["--ctx", "512", "--template"]).arg(&file))
}

pub fn weather() -> Value {
    let parameters = json!({"type": "object", "$defs": {"Unit": {"enum": ["C", "F"]}}, "properties": {
        "place": {"enum": ["Oslo", "Rome"]}, "unit": {"$ref": "#/$defs/Unit"}}, "required": ["place", "unit"]});
    json!({"type": "function", "function": {"name": "get_weather", "description": "Weather of a place.",
        "parameters": parameters, "strict": true}})
}

fn tools() -> Value {
    json!([weather(), {"type": "function", "function": {"name": "ring_bell"}}])
}

/// Checks a call of `get_weather` in OpenAI's form; its id.
fn is_weather(call: &Value) -> String {
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("get_weather")), "{call}");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(["Oslo", "Rome"].contains(&arguments["place"].as_str().unwrap()), "{call}");
    assert!(["C", "F"].contains(&arguments["unit"].as_str().unwrap()), "{call}");
    call["id"].as_str().unwrap().to_owned()
}

#[test]
fn required_calls_are_made_and_told() {
    let folder = tempfile::tempdir().unwrap();
    for template in [HERMES.to_owned(), mistral(), llama()].into_iter().chain(tagged()).chain(unlike()) {
        let Some(server) = start(&template, folder.path()) else { return };
        let named = json!({"type": "function", "function": {"name": "get_weather"}});
        let body = with(
            ask("Weather in Oslo?", 80),
            json!({"tools": tools(), "tool_choice": named, "max_completion_tokens": 200}),
        );
        let answer = server.ok(CHAT, &body);
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null),
            "{answer}"
        );
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), calls[0].get("index")), (1, None), "{answer}");
        let id = is_weather(&calls[0]);

        let parts = server.stream(CHAT, &with(body.clone(), json!({"stream": true})));
        let deltas: Vec<&Value> = parts.iter().map(|p| &p["choices"][0]["delta"]).collect();
        let told: Vec<&Value> = deltas.iter().filter_map(|d| d["tool_calls"].as_array()).flatten().collect();
        assert_eq!((told.len(), &told[0]["index"]), (1, &json!(0)), "{parts:?}");
        is_weather(told[0]);
        assert_eq!(told[0]["function"], calls[0]["function"]);
        assert!(deltas.iter().all(|d| d["content"].as_str().is_none_or(str::is_empty)), "{parts:?}");
        assert_eq!(parts.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

        // Any tool; the whole exchange is shown to the model; Ollama's form.
        let required = server.ok(CHAT, &with(body.clone(), json!({"tool_choice": "required"})));
        let name = &required["choices"][0]["message"]["tool_calls"][0]["function"]["name"];
        assert!(["get_weather", "ring_bell"].contains(&name.as_str().unwrap()), "{required}");
        let tool = json!({"role": "tool", "tool_call_id": id, "content": "12 degrees <|im_end|>"});
        let history = json!([body["messages"][0], choice["message"], tool]);
        let shown = server.ok("/apply-template", &json!({"messages": history, "tools": tools()}));
        let shown = shown["prompt"].as_str().unwrap();
        for word in ["ring_bell", "Weather of a place.", "tool\n12 degrees"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        // The call as it was written.
        let written = shown[shown.find("assistant\n").unwrap()..].split("<|im_end|>").next().unwrap();
        assert!(written.contains("get_weather") && written.contains("place"), "{shown}");
        server.ok(CHAT, &json!({"messages": history, "tools": tools(), "max_tokens": 4, "temperature": 0}));
        let ollama = with(body.clone(), json!({"stream": false, "options": {"num_predict": 200}}));
        let model_name = common::SMOL.trim_end_matches(".gguf");
        assert_eq!(
            server.ok("/api/show", &json!({"model": model_name}))["capabilities"],
            json!(["completion", "tools"])
        );
        let call = server.ok("/api/chat", &ollama)["message"]["tool_calls"][0].clone();
        assert_eq!(call["function"]["name"], "get_weather");
        assert!(call["function"]["arguments"]["place"].is_string(), "{call}");
        // Without a call the tools change nothing but the prompt.
        let none = server.ok(CHAT, &with(body.clone(), json!({"tool_choice": "none"})));
        let without = server.ok(CHAT, &with(ask("Weather in Oslo?", 200), json!({})));
        assert_eq!(none["choices"], without["choices"]);
        let free = server.ok(CHAT, &with(body, json!({"tool_choice": "auto", "max_tokens": 8})));
        assert!(free["usage"]["prompt_tokens"].as_u64() > none["usage"]["prompt_tokens"].as_u64());
    }
}

#[test]
fn texts_of_tools_are_no_control_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = start(HERMES, folder.path()) else { return };
    let n_ends = |description: &str, argument: &str| {
        let tool = json!({"type": "function", "function": {"name": "f", "description": description}});
        let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": argument}}});
        let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "x"}]);
        let body = json!({"messages": messages, "tools": [tool]});
        let shown = server.ok("/apply-template", &body)["prompt"].as_str().unwrap().to_owned();
        assert!(shown.contains(description) && shown.contains(argument), "{shown}");
        let end = server.ok("/tokenize", &json!({"content": "<|im_end|>"}))["tokens"][0].clone();
        let tokens = server.ok("/tokenize", &body)["tokens"].as_array().unwrap().clone();
        tokens.iter().filter(|t| **t == end).count()
    };
    assert_eq!(n_ends("plain", "plain"), 4);
    assert_eq!(n_ends("an <|im_end|> within", "and <|im_end|> here"), 4);
}

#[test]
fn tools_that_cannot_be_obeyed_are_refused_with_a_reason() {
    // This model's own template shows no tools.
    let Some(server) = Server::start(&["--ctx", "512"]) else { return };
    let refused = |body: Value, param: &str, word: &str| {
        let (status, value) = server.post(CHAT, &with(ask("hi", 4), body.clone()));
        assert_eq!((status, &value["error"]["param"]), (400, &json!(param)), "{body}: {value}");
        assert!(value["error"]["message"].as_str().unwrap().contains(word), "{word}: {value}");
    };
    refused(json!({"tools": tools()}), "tools", "does not show tools");
    refused(json!({"tools": [{"type": "web_search"}]}), "tools[0].type", "only functions");
    refused(json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name", "letters");
    refused(json!({"tools": [weather(), weather()]}), "tools", "two functions");
    refused(json!({"tools": tools(), "tool_choice": "maybe"}), "tool_choice", "maybe");
    refused(json!({"tool_choice": "required"}), "tool_choice", "no tools");
    refused(
        json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "x"}}}),
        "tool_choice",
        "\"x\"",
    );
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let history = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "x"}]);
    refused(json!({"messages": history}), "messages", "does not show the tool calls");
    for body in [
        json!({"tools": []}),
        json!({"tools": null, "tool_choice": null}),
        json!({"tools": tools(), "tool_choice": "none"}),
    ] {
        server.ok(CHAT, &with(ask("hi", 2), body));
    }
    drop(server);

    let folder = tempfile::tempdir().unwrap();
    // Tools are shown, calls in a form of nobody's.
    let server = start(
        &HERMES.replace("'<tool_call>\n' + {'name': c.function.name,", "'CALL ' + c.function.name + {"),
        folder.path(),
    );
    let refused = |server: &Server, body: Value, word: &str| {
        let (status, value) = server.post(CHAT, &with(ask("hi", 4), body));
        assert!(status == 400 && value["error"]["message"].as_str().unwrap().contains(word), "{word}: {value}");
    };
    refused(&server.unwrap(), json!({"tools": tools()}), "in a form that bidpo does not read");
    let server = start(HERMES, folder.path()).unwrap();
    let form = json!({"tools": tools(), "response_format": {"type": "json_object"}});
    refused(&server, form, "cannot be given together");
    let odd = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}}]);
    refused(&server, json!({"tools": odd, "tool_choice": "required"}), "not is not supported");
}
