//! Answers in a form that the request gives: JSON schemas and grammars.

use crate::common;
use crate::server::{DIAL, Server, ask, with};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn text(answer: &Value) -> String {
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let Some(server) = Server::start(&["--ctx", "512"]) else { return };
    let word = json!({"type": "string", "minLength": 1, "maxLength": 12});
    let schema = json!({
        "$defs": {"Part": {"type": "object", "title": "Part", "properties": {
            "name": {"$ref": "#/$defs/Word"}, "weight": {"type": "number", "minimum": 0, "maximum": 5}}, "required": ["name", "weight"]},
            "Word": word},
        "type": "object", "title": "Cup", "additionalProperties": false,
        "properties": {
            "size": {"enum": ["small", "large"], "description": "how large"},
            "age": {"type": "integer", "minimum": 3, "exclusiveMaximum": 121},
            "hot": {"type": ["boolean", "null"], "default": null},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}, "minItems": 1, "maxItems": 2},
            "made": {"anyOf": [{"type": "string", "format": "date"}, {"const": "never"}]},
            "pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 7}], "items": false},
        },
        "required": ["size", "age", "parts"],
    });
    let mut optional = 0;
    for seed in 0..4 {
        let format = json!({"type": "json_schema", "json_schema": {"name": "cup", "strict": true, "schema": schema}});
        let body = json!({"temperature": 1.3, "top_k": 80, "seed": seed, "response_format": format, "steering": [{"vector": DIAL, "scale": 0.5}]});
        let answer = text(&server.ok(CHAT, &with(ask("Describe a cup.", 300), body)));
        let v: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
        // In the schema's order, the required ones always.
        let order = ["size", "age", "hot", "parts", "made", "pair"];
        let found: Vec<&str> = order.into_iter().filter(|k| keys(&v).contains(k)).collect();
        assert_eq!(keys(&v), found, "{answer}");
        assert!(["size", "age", "parts"].iter().all(|k| found.contains(k)), "{answer}");
        optional += found.len() - 3;
        assert!(v["size"] == "small" || v["size"] == "large");
        assert!((3..=120).contains(&v["age"].as_i64().unwrap()), "{answer}");
        assert!(v.get("hot").is_none_or(|h| h.is_boolean() || h.is_null()));
        let parts = v["parts"].as_array().unwrap();
        assert!((1..=2).contains(&parts.len()));
        for part in parts {
            assert_eq!(keys(part), ["name", "weight"]);
            assert!((1..=12).contains(&part["name"].as_str().unwrap().chars().count()), "{answer}");
            assert!((0.0..=5.0).contains(&part["weight"].as_f64().unwrap()), "{answer}");
        }
        let date = |s: &str| s.len() == 10 && s.split('-').count() == 3;
        assert!(v.get("made").is_none_or(|m| m == "never" || date(m.as_str().unwrap())), "{answer}");
        assert!(v.get("pair").is_none_or(|p| p[0].is_boolean() && p[1] == 7 && p.as_array().unwrap().len() == 2));
    }
    assert!(optional > 0, "properties that may be left out never came");

    // Other ways to ask; choices of one request, streams, a steered model by name.
    let base = common::SMOL.trim_end_matches(".gguf");
    for (body, allowed) in [
        (json!({"grammar": "root ::= word \"!\"\nword ::= \"yes\" | \"no\""}), &["yes!", "no!"] as &[&str]),
        (json!({"guided_choice": ["yes", "no\""], "model": format!("{base}@{DIAL}")}), &["yes", "no\""]),
        (json!({"structured_outputs": {"choice": ["oak"]}}), &["oak"]),
        (json!({"json_schema": {"enum": [1, "a"]}}), &["1", "\"a\""]),
        (json!({"guided_json": "{\"type\": \"boolean\"}"}), &["true", "false"]),
        (json!({"guided_regex": "o[ak]{2}|\\x65lm\\."}), &["oak", "oka", "oaa", "okk", "elm."]),
        (json!({"structured_outputs": {"regex": "^(yes|no)$"}}), &["yes", "no"]),
        (
            json!({"json_schema": {"type": "string", "pattern": "^[é\"]*$", "minLength": 1, "maxLength": 1}}),
            &["\"é\"", "\"\\\"\""],
        ),
        (json!({"json_schema": {"type": "number", "minimum": -0.5, "maximum": -0.5}}), &["-0.5"]),
        (json!({"json_schema": {"allOf": [{"type": ["string", "null"]}, {"enum": ["oak", 1]}]}}), &["\"oak\""]),
        (json!({"response_format": {"type": "json_object", "schema": {"const": {"a": [null]}}}}), &["{\"a\":[null]}"]),
    ] {
        let body = with(ask("Is an oak a tree?", 20), body);
        let answer = text(&server.ok(CHAT, &body));
        assert!(allowed.contains(&answer.as_str()), "{body}: {answer}");
        let parts = server.stream(CHAT, &with(body.clone(), json!({"stream": true, "n": 2})));
        for i in 0..2 {
            let of = |p: &Value| p["choices"].as_array().is_some_and(|c| c[0]["index"] == i);
            let pieces = parts.iter().filter(|p| of(p)).filter_map(|p| p["choices"][0]["delta"]["content"].as_str());
            assert_eq!(pieces.collect::<String>(), answer);
        }
    }
    let body = json!({"prompt": "A cup: ", "max_tokens": 200, "response_format": {"type": "json_object"}, "seed": 3});
    let answer = server.ok("/v1/completions", &body);
    if answer["choices"][0]["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(answer["choices"][0]["text"].as_str().unwrap()).unwrap().is_object());
    }
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with('{'));
}

#[test]
fn forms_that_cannot_be_are_refused() {
    let Some(server) = Server::start(&["--ctx", "256"]) else { return };
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
    let nested = (0..100).fold(json!({}), |inner, _| json!({"items": inner, "type": "array"}));
    for (body, part) in [
        (json!({"grammar": "root ::= ("}), "line 1, column 11: ')' is expected"),
        (json!({"grammar": "root ::= other"}), "there is no rule other"),
        (json!({"grammar": "yes"}), "::= is expected"),
        (json!({"grammar": "root ::= root \"a\" | \"b\""}), "left recursion"),
        (json!({"grammar": "root ::= a\na ::= b \"x\"\nb ::= a"}), "left recursion"),
        (json!({"grammar": "root ::= \"a\"{5000}"}), "too large"),
        (json!({"grammar": format!("root ::= {}", "(".repeat(100_000))}), "nested"),
        (json!({"grammar": "root ::= \"\u{0}\""}), "NUL"),
        (json!({"grammar": "root ::= \"a\"", "json_schema": {"type": "null"}}), "both restrict"),
        (json!({"grammar": 3}), "must be a string"),
        (json!({"response_format": {"type": "xml"}}), "must be text, json_object or json_schema"),
        (json!({"response_format": {"type": "json_schema"}}), "is missing"),
        (json!({"response_format": "json"}), "must be an object"),
        (
            schema(json!({"type": "string", "pattern": "^(?!a)b$"})),
            "#: pattern: look-around or a flag is not supported",
        ),
        (
            schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})),
            "left recursion",
        ),
        (schema(json!({"type": "string", "minLength": 1e9})), "above 2000"),
        (json!({"guided_choice": [1]}), "list of strings"),
        (json!({"guided_regex": "(a"}), "guided_regex: the expression: pattern: a ( without its )"),
        (json!({"structured_outputs": {"structural_tag": "a"}}), "unknown parameter structured_outputs.structural_tag"),
    ] {
        let (status, answer) = server.post(CHAT, &with(ask("x", 4), body.clone()));
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(part), "{body}: {answer}");
    }
    // Deep is not wrong.
    assert_eq!(server.post(CHAT, &with(ask("x", 4), schema(nested))).0, 200);
    // A form that asks for nothing.
    for body in [json!({"response_format": {"type": "text"}}), json!({"grammar": ""}), json!({"json_schema": {}})] {
        assert_eq!(server.ok(CHAT, &with(ask("x", 4), body))["choices"], server.ok(CHAT, &ask("x", 4))["choices"]);
    }
}
