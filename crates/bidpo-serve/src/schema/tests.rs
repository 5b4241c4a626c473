use super::*;
use serde_json::json;

fn rules(schema: Value) -> String {
    grammar(&schema).unwrap()
}

#[test]
fn keywords_beyond_the_subset_are_named() {
    for (schema, part) in [
        (json!({"type": "string", "pattern": "^a$"}), "#: pattern is not supported"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "object", "properties": {"a": {"not": {}}}}), "#/properties/a: not is not supported"),
        (json!({"type": "object", "patternProperties": {}}), "patternProperties"),
        (json!({"allOf": [{}, {}]}), "allOf of more than one schema"),
        (json!({"anyOf": [{"type": "null"}], "type": "string"}), "#: type is not supported"),
        (json!({"if": {}, "then": {}}), "if is not supported"),
        (json!({"type": "number", "multipleOf": 0.5}), "multipleOf"),
        (json!({"$ref": "https://example.org/a.json"}), "only #/... is looked up"),
        (json!({"$ref": "#/$defs/a"}), "is not in the schema"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "no number is within its bounds"),
        (json!({"type": "thing"}), "there is no type \"thing\""),
        (json!({"enum": []}), "enum must be a list"),
        (json!([]), "a schema must be an object"),
        (json!(false), "allows nothing"),
        (json!({"type": "object", "required": ["a"]}), "required \"a\" without its property"),
        (json!({"type": "array", "minItems": 3, "maxItems": 2}), "maxItems is below minItems"),
        (json!({"type": "string", "minLength": -1}), "minLength must be a whole number"),
    ] {
        let error = grammar(&schema).unwrap_err().to_string();
        assert!(error.contains(part), "{schema}: {error}");
    }
    let many: Map<String, Value> = (0..9000).map(|i| (format!("property {i}"), json!({"type": "integer"}))).collect();
    assert_eq!(grammar(&json!({"type": "object", "properties": many})), Err(SchemaError::TooLarge));
}

#[test]
fn references_become_rules_once() {
    let text = rules(json!({
        "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                           "required": ["next"], "additionalProperties": false}},
        "$ref": "#/$defs/node", "description": "a list"
    }));
    assert_eq!(text.matches("\\\"next\\\"").count(), 1, "{text}");
}

#[test]
fn texts_are_escaped() {
    assert_eq!(literal("a\"\\\n\u{7f}é"), r#""a\"\\\n\u007fé""#);
    assert!(rules(json!({"const": "say \"hi\""})).contains(r#""\"say \\\"hi\\\"\"""#));
}
