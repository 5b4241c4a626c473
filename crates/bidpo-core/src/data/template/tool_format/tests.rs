use super::*;
use serde_json::json;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// As the model cards of these families show a call of `find`.
const WRITTEN: [(&str, &str); 27] = [
    ("hermes", "<tool_call>\n{\"name\": \"find\", \"arguments\": {\"place\": \"Oslo\"}}\n</tool_call><|im_end|>\n"),
    ("list", "<tool_call>[{\"name\": \"find\", \"arguments\": {\"place\": \"Oslo\"}}]</tool_call>"),
    (
        "qwen coder",
        "<tool_call>\n<function=find>\n<parameter=place>\nOslo\n</parameter>\n</function>\n</tool_call><|im_end|>",
    ),
    ("glm", "\n<tool_call>find\n<arg_key>place</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>"),
    ("glm 4.7", "<tool_call>find<arg_key>place</arg_key><arg_value>Oslo</arg_value></tool_call>"),
    (
        "seed",
        "<seed:tool_call>\n<function=find>\n<parameter=place>Oslo</parameter>\n</function>\n</seed:tool_call><seed:eos>",
    ),
    (
        "minimax",
        "\n<minimax:tool_call>\n<invoke name=\"find\">\n<parameter name=\"place\">Oslo</parameter>\n</invoke>\n</minimax:tool_call>",
    ),
    ("mistral", "[TOOL_CALLS] [{\"name\": \"find\", \"arguments\": {\"place\": \"Oslo\"}, \"id\": \"abcdefghi\"}]</s>"),
    ("mistral new", "[TOOL_CALLS]find[CALL_ID]abcdefghi[ARGS]{\"place\": \"Oslo\"}</s>"),
    ("mistral newer", "[TOOL_CALLS]find[ARGS]{\"place\": \"Oslo\"}</s>"),
    ("llama", "{\"name\": \"find\", \"parameters\": {\"place\": \"Oslo\"}}<|eot_id|>"),
    ("llama tag", "<|python_tag|>{\"name\": \"find\", \"parameters\": {\"place\": \"Oslo\"}}<|eom_id|>"),
    (
        "phi",
        "<|tool_call|>[{\"type\": \"function\", \"function\": {\"name\": \"find\", \"arguments\": \"{\\\"place\\\": \\\"Oslo\\\"}\"}}]<|/tool_call|>",
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n{\"place\": \"Oslo\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    ),
    (
        "deepseek 3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>{\"place\": \"Oslo\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    ),
    (
        "deepseek 3.2",
        "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"find\">\n<｜DSML｜parameter name=\"place\" string=\"true\">Oslo</｜DSML｜parameter>\n\
        </｜DSML｜invoke>\n</｜DSML｜function_calls><｜end▁of▁sentence｜>",
    ),
    (
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.find:0<|tool_call_argument_begin|>{\"place\": \"Oslo\"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>\n",
    ),
    ("lfm", "<|tool_call_start|>[find(place=\"Oslo\")]<|tool_call_end|><|im_end|>\n"),
    ("olmo", "<function_calls>find(place=\"Oslo\")</function_calls><|im_end|>\n"),
    ("llama 4", "<|python_start|>[find(place='Oslo')]<|python_end|><|eot_id|>"),
    ("llama python", "[find(place=\"Oslo\")]<|eot_id|>"),
    ("harmony", " to=functions.find<|channel|>commentary json<|message|>{\"place\": \"Oslo\"}<|call|>"),
    (
        "harmony channel",
        "<|channel|>commentary to=functions.find <|constrain|>json<|message|>{\"place\": \"Oslo\"}<|call|>",
    ),
    ("functionary", "<function=find>{\"place\": \"Oslo\"}</function><|eom_id|>"),
    ("functionary 3.2", ">>>find\n{\"place\": \"Oslo\"}<|eot_id|>"),
    (
        "command r7b",
        "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"find\", \"parameters\": {\"place\": \"Oslo\"}}\n]<|END_ACTION|>",
    ),
    (
        "command r",
        "Action: ```json\n[\n    {\n        \"tool_name\": \"find\",\n        \"parameters\": {\"place\": \"Oslo\"}\n    }\n]\n```",
    ),
];

const ENDS: [&str; 7] =
    ["</s>", "<|eot_id|>", "<|eom_id|>", "<|call|>", "<seed:eos>", "<｜end▁of▁sentence｜>", "<|im_end|>\n"];

fn written(family: &str) -> &'static str {
    WRITTEN.iter().find(|(name, _)| *name == family).unwrap().1
}

fn format(written: &str) -> ToolFormat {
    ToolFormat::of_written("", written, "find", &object(json!({"place": "Oslo"})))
        .unwrap_or_else(|| panic!("{written}"))
}

/// `find` with arguments of many types, and `go`.
fn functions() -> Vec<CalledFunction> {
    let properties = json!({"place": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"},
        "code": {"type": "string"}, "n": {"type": "integer"}});
    let find = json!({"type": "object", "properties": properties, "required": ["place", "days"]});
    ["find", "go"].map(|name| CalledFunction { name: name.into(), parameters: find.clone() }).into()
}

/// Text and calls of an answer that comes in pieces of `n` characters.
fn split(format: &ToolFormat, answer: &str, n: usize) -> (String, Vec<WrittenCall>) {
    let mut splitter = format.splitter(functions());
    let (mut text, mut calls) = (String::new(), Vec::new());
    let characters: Vec<char> = answer.chars().collect();
    let mut pieces: Vec<_> = characters.chunks(n).flat_map(|c| splitter.push(&c.iter().collect::<String>())).collect();
    pieces.extend(splitter.finish());
    for piece in pieces {
        match piece {
            AnswerPiece::Text(t) => text += &t,
            AnswerPiece::Call(call) => calls.push(call),
        }
    }
    assert_eq!(splitter.n_calls(), calls.len());
    (text, calls)
}

fn call(name: &str, arguments: Value) -> WrittenCall {
    WrittenCall { name: name.into(), arguments: object(arguments) }
}

#[test]
fn calls_of_every_family_come_back_however_they_are_cut() {
    for (family, written) in WRITTEN {
        let format = format(written);
        let answer = ENDS.iter().fold(written.to_owned(), |a, end| a.replace(end, ""));
        let answer = answer.replace("<|im_end|>", "");
        for n in [1, 2, 3, 7, 1000] {
            let (text, calls) = split(&format, &answer, n);
            assert_eq!((text.as_str(), calls), ("", vec![call("find", json!({"place": "Oslo"}))]), "{family} {n}");
        }
    }
}

#[test]
fn several_calls_with_values_of_many_types_behind_text() {
    let want = vec![
        call("find", json!({"place": "5", "days": 5, "tags": ["a", 1], "code": "if a < b:\n    f()"})),
        call("go", json!({"place": "a \"b\"", "days": -1})),
    ];
    let [a, b] = [
        "{\"place\": \"5\", \"days\": 5, \"tags\": [\"a\", 1], \"code\": \"if a < b:\\n    f()\"}",
        "{\"place\": \"a \\\"b\\\"\", \"days\": -1}",
    ];
    let python = ["find(place='5', days=5, tags=['a', 1], code='if a < b:\\n    f()')", "go(place='a \"b\"', days=-1)"];
    let tags = |open: &str, key: &str, mid: &str, end: &str, close: &str| {
        let argument = |name: &str, value: &str| format!("{key}{name}{mid}{value}{end}\n");
        let first = [("place", "5"), ("days", "5"), ("tags", "[\"a\", 1]"), ("code", "if a < b:\n    f()")];
        let first: String = first.iter().map(|(k, v)| argument(k, v)).collect();
        let second = argument("place", "a \"b\"") + &argument("days", "-1");
        [("find", first), ("go", second)]
            .map(|(name, inner)| format!("{}{inner}{close}", open.replace("NAME", name)))
            .concat()
    };
    for (family, answer) in [
        (
            "qwen coder",
            tags(
                "<tool_call>\n<function=NAME>\n",
                "<parameter=",
                ">\n",
                "\n</parameter>",
                "</function>\n</tool_call>\n",
            ),
        ),
        ("glm", tags("<tool_call>NAME\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>", "</tool_call>\n")),
        (
            "minimax",
            format!(
                "<minimax:tool_call>\n{}</minimax:tool_call>",
                tags("<invoke name=\"NAME\">\n", "<parameter name=\"", "\">", "</parameter>", "</invoke>\n")
            ),
        ),
        (
            "hermes",
            format!(
                "<tool_call>\n{{\"name\": \"find\", \"arguments\": {a}}}\n</tool_call>\n<tool_call>\n{{\"name\": \"go\", \"arguments\": {b}}}\n</tool_call>"
            ),
        ),
        ("mistral newer", format!("[TOOL_CALLS]find[ARGS]{a}[TOOL_CALLS]go[ARGS]{b}")),
        (
            "deepseek",
            format!(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n{a}\n```<｜tool▁call▁end｜>\n\
            <｜tool▁call▁begin｜>function<｜tool▁sep｜>go\n```json\n{b}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            ),
        ),
        (
            "deepseek 3.1",
            format!(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>{a}<｜tool▁call▁end｜>\
            <｜tool▁call▁begin｜>go<｜tool▁sep｜>{b}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            ),
        ),
        (
            "harmony",
            format!(
                "<|start|>assistant<|channel|>commentary to=functions.find <|constrain|>json<|message|>{a}<|end|>\
            <|start|>assistant to=functions.go<|channel|>commentary json<|message|>{b}"
            ),
        ),
        ("functionary", format!("<function=find>{a}</function>\n<function=go>{b}</function>")),
        ("functionary 3.2", format!(">>>find\n{a}\n>>>go\n{b}")),
        (
            "deepseek 3.2",
            format!(
                "<｜DSML｜function_calls>\n{}</｜DSML｜function_calls>",
                tags(
                    "<｜DSML｜invoke name=\"NAME\">\n",
                    "<｜DSML｜parameter name=\"",
                    "\" string=\"true\">",
                    "</｜DSML｜parameter>",
                    "</｜DSML｜invoke>\n"
                )
            ),
        ),
        (
            "kimi",
            format!(
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.find:0<|tool_call_argument_begin|>{a}<|tool_call_end|>\
            <|tool_call_begin|>functions.go:1<|tool_call_argument_begin|>{b}<|tool_call_end|><|tool_calls_section_end|>"
            ),
        ),
        ("olmo", format!("<function_calls>{}\n{}</function_calls>", python[0], python[1])),
        ("lfm", format!("<|tool_call_start|>[{}]<|tool_call_end|>", python.join(", "))),
        (
            "command r7b",
            format!(
                "<|START_ACTION|>[{{\"tool_name\": \"find\", \"parameters\": {a}}}, {{\"tool_name\": \"go\", \"parameters\": {b}}}]<|END_ACTION|>"
            ),
        ),
    ] {
        let format = format(written(family));
        for n in [1, 2, 5, 11, 1000] {
            assert_eq!(
                split(&format, &format!("I look.\n{answer}"), n),
                ("I look.".into(), want.clone()),
                "{family} {n}"
            );
            // Cut off within the second call: the first one is told, the rest is text.
            let cut = &answer[..answer.rfind("-1").unwrap()];
            let (text, calls) = split(&format, cut, n);
            if !["command r7b", "lfm"].contains(&family) {
                assert_eq!(calls, want[..1], "{family} {n}");
                assert!(text.contains("go"), "{family} {n}: {text}");
            }
        }
    }
}

#[test]
fn text_beside_calls_stays_text() {
    let hermes = format(written("hermes"));
    let one = |name: &str, value: i32| call(name, json!({"n": value}));
    let two = "I look.\n<tool_call>\n{\"name\": \"find\", \"arguments\": {\"n\": 1}}\n</tool_call>\n<tool_call>\
        {\"name\": \"go\", \"arguments\": {\"n\": 2}}</tool_call>\nDone.";
    for n in [1, 4, 1000] {
        assert_eq!(split(&hermes, two, n), ("I look.Done.".into(), vec![one("find", 1), one("go", 2)]));
        // Nothing that is cut off or broken is lost.
        for text in
            ["a < b\n", "<tool_call>\n{\"name\": \"find\", \"argu", "<tool_call>{\"name\": }</tool_call>", "<tool"]
        {
            assert_eq!(split(&hermes, text, n), (text.into(), vec![]), "{n}");
        }
        // A model that mixes up two forms with the same mark.
        let coder = "<tool_call>\n<function=find>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>";
        assert_eq!(split(&hermes, coder, n), (String::new(), vec![one("find", 1)]), "{n}");
        let glm = format(written("glm"));
        assert_eq!(split(&glm, "<tool_call>go\n</tool_call>", n), (String::new(), vec![call("go", json!({}))]), "{n}");
        for text in ["<tool_call>find\n<arg_key>n</arg_key>\n<arg_value>1", "<tool_call>go", "find <b>x</b>"] {
            assert_eq!(split(&glm, text, n), (text.into(), vec![]), "{n}");
        }
        let harmony = format(written("harmony"));
        for text in ["I go to the sea.", "Write to=someone <|x"] {
            assert_eq!(split(&harmony, text, n), (text.into(), vec![]), "{n}");
        }
    }
    let llama = format(written("llama"));
    for n in [1, 4, 1000] {
        let tagged = "<|python_tag|>{\"name\": \"go\", \"parameters\": {\"n\": 2}}; {\"name\": \"find\", \"parameters\": {\"n\": 1}}";
        assert_eq!(split(&llama, tagged, n), (String::new(), vec![one("go", 2), one("find", 1)]), "{n}");
        let python = "[go(n=2), find(n=1)]";
        assert_eq!(split(&llama, python, n), (String::new(), vec![one("go", 2), one("find", 1)]), "{n}");
        // What names no tool is an answer.
        for text in [
            "{\"name\": \"Ann\", \"parameters\": {}}",
            "[1, 2]",
            "[f(n=1)]",
            "A set {\"name\": \"go\", \"parameters\": {}}",
            "\n",
        ] {
            assert_eq!(split(&llama, text, n), (text.into(), vec![]), "{n}");
        }
    }
}

/// The texts that a required call may have, with the shortest value for each part.
fn shortest(parts: &[CallPart]) -> String {
    let one = |part: &CallPart| match part {
        CallPart::Text(text) => text.clone(),
        CallPart::Free { .. } => "Oslo".to_owned(),
        CallPart::OneOf(texts) => texts[0].clone(),
        CallPart::Optional(_) => String::new(),
        CallPart::Json { root, pointer } => match root.pointer(pointer).unwrap()["type"].as_str().unwrap() {
            "integer" => "3".to_owned(),
            "string" => "\"Oslo\"".to_owned(),
            _ if root["required"][0] == "place" => "{\"place\": \"Oslo\", \"days\": 3}".to_owned(),
            _ => {
                let key = root["required"][1].as_str().unwrap();
                let name = root["properties"][root["required"][0].as_str().unwrap()]["const"].as_str().unwrap();
                let first = root["required"][0].as_str().unwrap();
                format!("{{\"{first}\": \"{name}\", \"{key}\": {{\"place\": \"Oslo\", \"days\": 3}}}}")
            }
        },
    };
    parts.iter().map(one).collect()
}

#[test]
fn a_required_call_is_written_as_the_template_writes_it_and_read_back() {
    for (family, written) in WRITTEN {
        let format = format(written);
        let text = shortest(&format.one_call(&functions()[0]));
        let want = vec![call("find", json!({"place": "Oslo", "days": 3}))];
        assert_eq!(split(&format, &text, 3), (String::new(), want), "{family}: {text}");
    }
    // To the byte, with one argument.
    let mut one = functions().swap_remove(0);
    one.parameters = json!({"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]});
    for family in ["qwen coder", "glm", "glm 4.7", "seed", "minimax", "deepseek 3.2", "lfm", "olmo"] {
        let text = written(family);
        let text = ["<|im_end|>\n", "<|im_end|>", "<seed:eos>", "<｜end▁of▁sentence｜>"]
            .iter()
            .fold(text.to_owned(), |t, end| t.replace(end, ""));
        assert_eq!(shortest(&format(&text).one_call(&one)), text.trim_start(), "{family}");
    }
}

#[test]
fn recipients_behind_the_mark_of_the_prompt() {
    let place = object(json!({"place": "Oslo"}));
    let prompt = "<|start_header_id|>assistant<|end_header_id|>\n\n>>>";
    let opened = ToolFormat::of_written(prompt, "find\n{\"place\": \"Oslo\"}<|eot_id|>", "find", &place).unwrap();
    let [one, two] = [call("find", json!({"days": 1})), call("go", json!({}))];
    for n in [1, 3, 1000] {
        let calls = "find\n{\"days\": 1}>>>go\n{}";
        assert_eq!(split(&opened, calls, n), (String::new(), vec![one.clone(), two.clone()]), "{n}");
        let both = format!("all\nI look.\n>>>{calls}");
        assert_eq!(split(&opened, &both, n), ("I look.".into(), vec![one.clone(), two.clone()]), "{n}");
        for (answer, text) in [
            ("all\nYes.", "Yes."),
            ("all\n>>> print(1)\n1\n>>>", ">>> print(1)\n1\n>>>"),
            ("Yes.", "Yes."),
            ("all", "all"),
            ("", ""),
            ("find", "find"),
            ("find\n{\"da", "find\n{\"da"),
        ] {
            assert_eq!(split(&opened, answer, n), (text.into(), vec![]), "{answer:?} {n}");
        }
    }
    assert_eq!(shortest(&opened.one_call(&functions()[0])), "find\n{\"place\": \"Oslo\", \"days\": 3}");
}

#[test]
fn unknown_forms_are_none() {
    let arguments = object(json!({"place": "Oslo"}));
    for text in [
        "find(place=\"Oslo\")",
        "<|tool_call>call:find{place:<|\"|>Oslo<|\"|>}<tool_call|>",
        "<tool_call>find(Oslo)</tool_call>",
        "",
    ] {
        assert_eq!(ToolFormat::of_written("", text, "find", &arguments), None, "{text}");
    }
}
