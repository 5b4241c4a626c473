//! OpenAI's Responses API: the answers of the chat API in another shape.

use crate::common;
use crate::server::{DIAL, Server, agent, ask, command, with};
use crate::thoughts::{TEMPLATE, ending_the_thought};
use crate::tools;
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";
const CHAT: &str = "/v1/chat/completions";

/// The events of a stream, each with its name.
fn events(server: &Server, body: &Value) -> Vec<Value> {
    let body = with(body.clone(), json!({"stream": true}));
    let mut response = agent().post(format!("{}{PATH}", server.url)).send_json(&body).unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.body_mut().read_to_string().unwrap();
    let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
    let pairs = lines.chunks_exact(2).map(|pair| {
        let event: Value = serde_json::from_str(pair[1].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(pair[0].strip_prefix("event: "), event["type"].as_str(), "{text}");
        event
    });
    let events: Vec<Value> = pairs.collect();
    assert!(events.iter().enumerate().all(|(i, e)| e["sequence_number"] == i), "{text}");
    events
}

/// The response without what differs from one to the next.
fn comparable(response: &Value) -> Value {
    let mut value = response.clone();
    for key in ["id", "created_at", "completed_at", "usage"] {
        value[key] = Value::Null;
    }
    for item in value["output"].as_array_mut().unwrap() {
        item["id"] = Value::Null;
        item["call_id"] = Value::Null;
    }
    value
}

fn deltas(events: &[Value], kind: &str) -> String {
    events.iter().filter(|e| e["type"] == kind).map(|e| e["delta"].as_str().unwrap()).collect()
}

#[test]
fn responses_hold_the_answers_of_chats() {
    let Some(server) = Server::start(&["--ctx", "512"]) else { return };
    let base = common::SMOL.trim_end_matches(".gguf");
    let question = "How do I make a cup of tea?";
    for (model, steering) in [
        (base.to_owned(), json!([])),
        (format!("{base}@{DIAL}"), json!([])),
        (base.to_owned(), json!([{"vector": DIAL}])),
    ] {
        let same = json!({"model": model, "steering": steering, "temperature": 0});
        let chat = with(ask(question, 12), same.clone());
        let want = server.ok(CHAT, &chat)["choices"][0]["message"]["content"].clone();
        let body = with(json!({"input": question, "max_output_tokens": 12}), same.clone());
        let response = server.ok(PATH, &body);
        assert_eq!((&response["object"], &response["model"]), (&json!("response"), &json!(model)));
        assert_eq!(
            (&response["status"], &response["incomplete_details"]["reason"]),
            (&json!("incomplete"), &json!("max_output_tokens"))
        );
        assert_eq!(response["output"][0]["content"][0]["text"], want);
        assert_eq!((&response["usage"]["output_tokens"], &response["max_output_tokens"]), (&json!(12), &json!(12)));
        let events = events(&server, &body);
        assert_eq!(deltas(&events, "response.output_text.delta"), want.as_str().unwrap());
        let (first, last) = (&events[0], events.last().unwrap());
        assert_eq!((&first["type"], &last["type"]), (&json!("response.created"), &json!("response.incomplete")));
        assert_eq!(comparable(&last["response"]), comparable(&response));
        // Instructions and a history.
        let system = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": question},
            {"role": "assistant", "content": "Boil water."}, {"role": "user", "content": "And then?"}]);
        let want = server.ok(CHAT, &with(with(ask("", 8), same.clone()), json!({"messages": system})));
        let said = json!([{"type": "output_text", "text": "Boil water.", "annotations": []}]);
        let items = json!([{"role": "user", "content": [{"type": "input_text", "text": question}]},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": said},
            {"role": "user", "content": "And then?"}]);
        let body = with(json!({"input": items, "instructions": "Be brief.", "max_output_tokens": 8}), same);
        assert_eq!(server.ok(PATH, &body)["output"][0]["content"][0]["text"], want["choices"][0]["message"]["content"]);
    }
    // A form of the answer, log-probabilities, and an end of its own.
    let format = json!({"format": {"type": "json_schema", "name": "a", "schema": {"enum": ["yes", "no"]}}});
    let body = json!({"input": "Is an oak a tree?", "text": format, "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let response = server.ok(PATH, &body);
    assert_eq!(response["status"], "completed");
    let part = &response["output"][0]["content"][0];
    assert!(["\"yes\"", "\"no\""].contains(&part["text"].as_str().unwrap()), "{part}");
    assert!(
        part["logprobs"].as_array().unwrap().iter().all(|t| t["top_logprobs"].as_array().unwrap().len() == 2),
        "{part}"
    );
    for (more, param, word) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id", "whole conversation"),
        (json!({"conversation": "c"}), "conversation", "whole conversation"),
        (json!({"input": null}), "input", "missing"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type", "only functions"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "messages[0].content[0].type",
            "only text",
        ),
        (json!({"steering": [{"vector": "nobody"}]}), "steering[0].vector", "no vector"),
    ] {
        let (status, answer) = server.post(PATH, &with(json!({"input": "hi"}), more.clone()));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{more}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(word), "{more}: {answer}");
    }
}

#[test]
fn functions_are_called_and_thoughts_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = tools::start(tools::HERMES, folder.path()) else { return };
    let mut tool = tools::weather()["function"].clone();
    tool["type"] = json!("function");
    let body = json!({"input": "Weather in Oslo?", "tools": [tool], "temperature": 0, "max_output_tokens": 80,
        "tool_choice": {"type": "function", "name": "get_weather"}});
    let response = server.ok(PATH, &body);
    let call = response["output"][0].clone();
    assert_eq!(
        (&call["type"], &call["name"], &response["status"]),
        (&json!("function_call"), &json!("get_weather"), &json!("completed"))
    );
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(["Oslo", "Rome"].contains(&arguments["place"].as_str().unwrap()), "{call}");
    let events = events(&server, &body);
    assert_eq!(deltas(&events, "response.function_call_arguments.delta"), call["arguments"].as_str().unwrap());
    assert_eq!(comparable(&events.last().unwrap()["response"]), comparable(&response));
    // Its result goes back.
    let result = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "12 degrees"});
    let input = json!([{"role": "user", "content": "Weather in Oslo?"}, call, result]);
    let next = server.ok(PATH, &with(body, json!({"input": input, "tool_choice": "none", "max_output_tokens": 6})));
    assert_eq!(next["output"][0]["type"], "message", "{next}");
    drop(server);

    let Some(model) = common::model(common::SMOL) else { return };
    let file = folder.path().join("thinking.jinja");
    std::fs::write(&file, TEMPLATE).unwrap();
    let server = Server::spawn(command(&model).args(["--ctx", "512", "--template"]).arg(&file)).unwrap();
    let fields = with(ending_the_thought(&server), json!({"temperature": 0}));
    let chat = server.ok(CHAT, &with(ask("What is tea for?", 14), fields.clone()))["choices"][0]["message"].clone();
    let body = with(json!({"input": "What is tea for?", "max_output_tokens": 14}), fields);
    let output = server.ok(PATH, &body)["output"].clone();
    assert_eq!((&output[0]["type"], &output[1]["type"]), (&json!("reasoning"), &json!("message")), "{output}");
    let thought = output[0]["content"][0]["text"].as_str().unwrap();
    assert_eq!(
        (thought.trim_end(), &output[1]["content"][0]["text"]),
        (chat["reasoning_content"].as_str().unwrap(), &chat["content"])
    );
    assert_eq!(deltas(&self::events(&server, &body), "response.reasoning_text.delta"), thought);
}
