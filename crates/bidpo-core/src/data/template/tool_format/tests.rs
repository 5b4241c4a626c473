use super::*;
use serde_json::json;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// As the model cards of these families show a call of `find`.
const WRITTEN: [(&str, &str); 7] = [
    ("hermes", "<tool_call>\n{\"name\": \"find\", \"arguments\": {\"place\": \"Oslo\"}}\n</tool_call><|im_end|>\n"),
    ("list", "<tool_call>[{\"name\": \"find\", \"arguments\": {\"place\": \"Oslo\"}}]</tool_call>"),
    ("mistral", "[TOOL_CALLS] [{\"name\": \"find\", \"arguments\": {\"place\": \"Oslo\"}, \"id\": \"abcdefghi\"}]</s>"),
    ("mistral new", "[TOOL_CALLS]find[CALL_ID]abcdefghi[ARGS]{\"place\": \"Oslo\"}</s>"),
    ("llama", "{\"name\": \"find\", \"parameters\": {\"place\": \"Oslo\"}}<|eot_id|>"),
    ("llama tag", "<|python_tag|>{\"name\": \"find\", \"parameters\": {\"place\": \"Oslo\"}}<|eom_id|>"),
    (
        "phi",
        "<|tool_call|>[{\"type\": \"function\", \"function\": {\"name\": \"find\", \"arguments\": \"{\\\"place\\\": \\\"Oslo\\\"}\"}}]<|/tool_call|>",
    ),
];

fn format(written: &str) -> ToolFormat {
    ToolFormat::of_written(written, "find", &object(json!({"place": "Oslo"}))).unwrap_or_else(|| panic!("{written}"))
}

/// Text and calls of an answer that comes in pieces of `n` characters.
fn split(format: &ToolFormat, answer: &str, n: usize) -> (String, Vec<WrittenCall>) {
    let mut splitter = format.splitter(vec!["find".into(), "go".into()]);
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

#[test]
fn calls_of_every_family_come_back_however_they_are_cut() {
    for (family, written) in WRITTEN {
        let format = format(written);
        let answer = written.split("<|im_end|>").next().unwrap();
        let answer = ["</s>", "<|eot_id|>", "<|eom_id|>"].iter().fold(answer.to_owned(), |a, end| a.replace(end, ""));
        for n in [1, 2, 3, 7, 1000] {
            let (text, calls) = split(&format, &answer, n);
            let want = WrittenCall { name: "find".into(), arguments: object(json!({"place": "Oslo"})) };
            assert_eq!((text.as_str(), calls), ("", vec![want]), "{family} {n}");
        }
    }
}

#[test]
fn text_beside_calls_stays_text() {
    let hermes = format(WRITTEN[0].1);
    let one = |name: &str, value: i32| WrittenCall { name: name.into(), arguments: object(json!({"n": value})) };
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
    }
    let llama = format(WRITTEN[4].1);
    for n in [1, 4, 1000] {
        let tagged = "<|python_tag|>{\"name\": \"go\", \"parameters\": {\"n\": 2}}; {\"name\": \"find\", \"parameters\": {\"n\": 1}}";
        assert_eq!(split(&llama, tagged, n), (String::new(), vec![one("go", 2), one("find", 1)]), "{n}");
        // JSON that names no tool is an answer.
        for text in
            ["{\"name\": \"Ann\", \"parameters\": {}}", "[1, 2]", "A set {\"name\": \"go\", \"parameters\": {}}", "\n"]
        {
            assert_eq!(split(&llama, text, n), (text.into(), vec![]), "{n}");
        }
    }
}

#[test]
fn unknown_forms_are_none() {
    let arguments = object(json!({"place": "Oslo"}));
    for text in [
        "<function=find><parameter=place>Oslo</parameter></function>",
        "find(place=\"Oslo\")",
        "<tool_call>find\n<arg_key>place</arg_key><arg_value>Oslo</arg_value></tool_call>",
        "",
    ] {
        assert_eq!(ToolFormat::of_written(text, "find", &arguments), None, "{text}");
    }
}
