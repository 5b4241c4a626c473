use super::*;
use serde_json::json;

fn rules(schema: Value) -> String {
    grammar(&schema).unwrap()
}

#[test]
fn keywords_beyond_the_subset_are_named() {
    for (schema, part) in [
        (json!({"type": "string", "pattern": "^(?!a)b$"}), "#: pattern: look-around or a flag is not supported"),
        (json!({"type": "string", "pattern": "(a"}), "#: pattern: a ( without its )"),
        (
            json!({"type": "string", "pattern": "^ab*$", "maxLength": 3}),
            "#: minLength or maxLength beside this pattern",
        ),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "object", "properties": {"a": {"not": {}}}}), "#/properties/a: not is not supported"),
        (
            json!({"type": "object", "patternProperties": {"^a": {}, "b$": {}}}),
            "patternProperties of more than one pattern",
        ),
        (json!({"properties": {"b": {}}, "patternProperties": {"^a": {}}}), "patternProperties beside other keys"),
        (json!({"propertyNames": {"pattern": "^a"}, "properties": {"b": {}}}), "beside other keys"),
        (json!({"allOf": [{"const": 1}, {"const": 2}]}), "two different values of const"),
        (
            json!({"allOf": [{"properties": {"a": {}}, "additionalProperties": false}, {"properties": {"b": {}}}]}),
            "additionalProperties beside properties of another part",
        ),
        (json!({"anyOf": [{"type": "null"}], "type": "string"}), "#/anyOf/0: no type is left"),
        (
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a", "type": "object"}),
            "lead to themselves",
        ),
        (
            json!({"$defs": {"a": {"type": "object", "anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}),
            "lead to themselves",
        ),
        (json!({"type": "string", "enum": [1, null]}), "enum holds no value of the type"),
        (json!({"if": {}, "then": {}}), "if is not supported"),
        (json!({"type": "number", "multipleOf": 0.5}), "multipleOf"),
        (json!({"$ref": "https://example.org/a.json"}), "only #/... is looked up"),
        (json!({"$ref": "#/$defs/a"}), "is not in the schema"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "no number is within its bounds"),
        (json!({"type": "thing"}), "there is no type \"thing\""),
        (json!({"enum": []}), "enum must be a list"),
        (json!([]), "a schema must be an object"),
        (json!(false), "allows nothing"),
        (
            json!({"type": "object", "required": ["a"], "additionalProperties": false}),
            "required \"a\" without its property",
        ),
        (json!({"type": "array", "minItems": 3, "maxItems": 2}), "maxItems is below minItems"),
        (json!({"type": "string", "minLength": -1}), "minLength must be a whole number"),
    ] {
        let error = grammar(&schema).unwrap_err().to_string();
        assert!(error.contains(part), "{schema}: {error}");
    }
    // Parts that double at each step, and many with the same keywords beside them.
    let doubling = |i: u32| {
        (
            format!("d{i}"),
            json!({"allOf": [{"$ref": format!("#/$defs/d{}", i + 1)}, {"$ref": format!("#/$defs/d{}", i + 1)}]}),
        )
    };
    let mut steps: Map<String, Value> = (0..10).map(doubling).collect();
    steps.insert("d10".into(), json!({"type": "null"}));
    for schema in [
        json!({"$defs": steps, "allOf": [{"$ref": "#/$defs/d0"}, {"type": "null"}]}),
        json!({"required": ["a"], "anyOf": vec![json!({}); 5000]}),
    ] {
        let error = grammar(&schema).unwrap_err().to_string();
        assert!(error.contains("more than 1000 parts must be merged"), "{error}");
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

/// Schemas that say the same have the same grammar.
#[test]
fn parts_that_hold_at_once_are_merged() {
    let name = json!({"type": "string", "maxLength": 9});
    for (parts, whole) in [
        (
            json!({"allOf": [{"type": "object", "properties": {"a": name}}, {"required": ["a"]}]}),
            json!({"type": "object", "properties": {"a": name}, "required": ["a"]}),
        ),
        (
            json!({"$defs": {"Base": {"properties": {"a": name}, "required": ["a"]}},
                "allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"b": {"type": "null"}}}], "description": "x"}),
            json!({"properties": {"a": name, "b": {"type": "null"}}, "required": ["a"]}),
        ),
        (
            json!({"$defs": {"N": {"type": "number", "minimum": 1}}, "$ref": "#/$defs/N", "minimum": 3}),
            json!({"type": "number", "minimum": 3}),
        ),
        (
            json!({"type": "string", "anyOf": [{"maxLength": 2}, {"const": "long"}]}),
            json!({"anyOf": [{"type": "string", "maxLength": 2}, {"const": "long"}]}),
        ),
        (
            json!({"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({"anyOf": [{"properties": {"a": {}, "b": {}}, "required": ["a"]}, {"properties": {"a": {}, "b": {}}, "required": ["b"]}]}),
        ),
        (json!({"allOf": [{"type": ["integer", "null"]}, {"type": "number"}]}), json!({"type": "integer"})),
        (json!({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}), json!({"enum": [2, 3]})),
        (json!({"type": "string", "enum": ["a", null]}), json!({"enum": ["a"]})),
        (
            json!({"required": ["a"], "additionalProperties": name}),
            json!({"properties": {"a": name}, "required": ["a"]}),
        ),
        (
            json!({"type": "object", "propertyNames": {"type": "string", "enum": ["a"]}, "required": ["a"]}),
            json!({"properties": {"a": {}}, "required": ["a"]}),
        ),
        (
            json!({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": name}),
            json!({"type": "object", "additionalProperties": name}),
        ),
        (json!({"type": "object", "propertyNames": {"pattern": "^k"}}), json!({"patternProperties": {"^k": {}}})),
    ] {
        assert_eq!(rules(parts.clone()), rules(whole), "{parts}");
    }
    assert!(rules(json!({"type": "string", "nullable": true})).contains("string | null"));
    assert!(rules(json!({"type": "string", "pattern": "^[a-c]{2}$"})).contains(r#""\"" (([a-c]){2,2}) "\"""#));
}

#[test]
fn texts_are_escaped() {
    assert_eq!(literal("a\"\\\n\u{7f}é"), r#""a\"\\\n\u007fé""#);
    assert!(rules(json!({"const": "say \"hi\""})).contains(r#""\"say \\\"hi\\\"\"""#));
}
