//! Each form through the public reader, with the exact pair. The texts are ours, the forms as they are published.

use super::{Keys, Role};
use crate::data::{Message, PreferenceSet, PrefsError, Prompt, ReadOptions};
use serde_json::{Value, json};

fn load(name: &str, text: &str, options: &ReadOptions) -> Result<PreferenceSet, PrefsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    PreferenceSet::load_with(&path, options)
}

fn strict() -> ReadOptions {
    ReadOptions { strict: true, ..ReadOptions::default() }
}

fn read(row: &Value) -> PreferenceSet {
    load("f.jsonl", &format!("{row}\n"), &strict()).unwrap_or_else(|e| panic!("{row}: {e}"))
}

fn fault(row: &Value) -> String {
    load("f.jsonl", &format!("{row}\n"), &strict()).unwrap_err().to_string()
}

/// A chat: each message as `role: text`.
fn chat(messages: &[&str]) -> Prompt {
    let one = |m: &&str| {
        let (role, content) = m.split_once(": ").unwrap();
        Message::new(role, content)
    };
    Prompt::Messages(messages.iter().map(one).collect())
}

fn text(prompt: &str) -> Prompt {
    Prompt::Text(prompt.into())
}

/// The one pair of a row, the name of its form, and what became of its columns.
#[track_caller]
fn gives(row: Value, form: &str, prompt: Prompt, answers: [&str; 2], unused: &[&str]) {
    let set = read(&row);
    assert_eq!(set.len(), 1, "{row}");
    let pair = &set.pairs[0];
    assert_eq!(set.reading.forms[0].name, form, "{row}");
    assert_eq!((&pair.prompt, [pair.chosen.as_str(), pair.rejected.as_str()]), (&prompt, answers), "{row}");
    assert_eq!(set.reading.unused, unused, "{row}");
}

const GREEN: [&str; 2] = ["Green.", "Seven."];

fn user(content: &str) -> Value {
    json!({ "role": "user", "content": content })
}

fn says(content: &str) -> Value {
    json!({ "role": "assistant", "content": content })
}

#[test]
fn prompt_and_two_answers() {
    let form = "prompt and two answers";
    let q = "Name a colour.";
    for answer in [
        |t: &str| json!(t),
        |t: &str| says(t),
        |t: &str| json!([says(t)]),
        |t: &str| json!([t]),
        |t: &str| json!({"text": t, "rating": 4}),
    ] {
        let row = |prompt: Value| json!({ "prompt": prompt, "chosen": answer("Green."), "rejected": answer("Seven.") });
        gives(row(json!(q)), form, text(q), GREEN, &[]);
        gives(row(json!([user(q)])), form, chat(&["user: Name a colour."]), GREEN, &[]);
    }
    // An empty system message is left out; a developer's message is a system message.
    let with_system = |role: &str, content: &str| json!({ "prompt": [{ "role": role, "content": content }, user(q)], "chosen": "Green.", "rejected": "Seven." });
    gives(with_system("system", ""), form, chat(&["user: Name a colour."]), GREEN, &[]);
    gives(
        with_system("developer", "Be brief."),
        form,
        chat(&["system: Be brief.", "user: Name a colour."]),
        GREEN,
        &[],
    );
    // Columns besides.
    let row = json!({ "prompt": q, "system_prompt": "Be brief.", "chosen": "Green.", "rejected": "Seven.", "chosen_rating": 4, "note": "" });
    gives(row, form, chat(&["system: Be brief.", "user: Name a colour."]), GREEN, &["chosen_rating"]);
    gives(
        json!({ "messages": [user(q)], "chosen": says("Green."), "rejected": says("Seven.") }),
        form,
        chat(&["user: Name a colour."]),
        GREEN,
        &[],
    );
    // Several turns, and a tool's message.
    let turns = json!([user("One?"), says("Yes."), { "role": "tool", "content": "3" }, user("Two?")]);
    gives(
        json!({ "prompt": turns, "chosen": "Green.", "rejected": "Seven." }),
        form,
        chat(&["user: One?", "assistant: Yes.", "tool: 3", "user: Two?"]),
        GREEN,
        &[],
    );
}

#[test]
fn whole_dialogues() {
    let with = |before: &[Value], last: &str| Value::Array(before.iter().cloned().chain([says(last)]).collect());
    let one = [user("Name a colour.")];
    let several =
        [json!({"role": "system", "content": "Be brief."}), user("Hello."), says("Hello!"), user("Name a colour.")];
    let long = ["system: Be brief.", "user: Hello.", "assistant: Hello!", "user: Name a colour."];
    let trl = |before: &[Value]| json!({ "chosen": with(before, "Green."), "rejected": with(before, "Seven.") });
    gives(trl(&one), "TRL, implicit prompt", chat(&["user: Name a colour."]), GREEN, &[]);
    gives(trl(&several), "TRL, implicit prompt", chat(&long), GREEN, &[]);
    // The prompt again as a column: the first message, the last one, all of them, or the whole dialogue.
    let repeated = |prompt: Value| {
        let mut row = trl(&several);
        row["prompt"] = prompt;
        row
    };
    for prompt in [json!("Hello."), json!("Name a colour."), json!(" Name a colour.\n")] {
        gives(repeated(prompt), "UltraFeedback, binarized", chat(&long), GREEN, &[]);
    }
    for prompt in [json!(several), json!(several[..1]), json!(several[3..]), with(&several, "Green.")] {
        gives(repeated(prompt), "prompt and two answers", chat(&long), GREEN, &[]);
    }
    // The system message only in the prompt.
    let mut row = trl(&several[1..]);
    row["prompt"] = json!(several);
    gives(row, "prompt and two answers", chat(&long), GREEN, &[]);
    let mut row = trl(&one);
    row["prompt"] = json!("Name a colour.");
    row["prompt_id"] = json!("x");
    row["messages"] = with(&one, "Green.");
    row["score_chosen"] = json!(8.0);
    gives(
        row,
        "UltraFeedback, binarized",
        chat(&["user: Name a colour."]),
        GREEN,
        &["prompt_id", "messages", "score_chosen"],
    );

    let error = fault(&repeated(json!("Name a tree.")));
    assert!(error.contains("f.jsonl:1: the prompt is not what the messages before the answers say"), "{error}");
    let error = fault(&json!({ "chosen": with(&one, "Green."), "rejected": with(&[user("Name a tree.")], "Seven.") }));
    assert!(error.contains("differ before their last answers (from message 1 on)"), "{error}");
    let error = fault(&json!({ "chosen": [user("a")], "rejected": [user("a")] }));
    assert!(error.contains("\"chosen\" must end with a message of the assistant, message 1 is one of user"), "{error}");
    let error = fault(&json!({ "chosen": [says("a")], "rejected": [says("b")] }));
    assert!(error.contains("there is no prompt"), "{error}");
}

#[test]
fn dialogues_as_text() {
    let form = "dialogues as text (HH-RLHF)";
    let q = "\n\nHuman: How do I fold a paper boat?\n\nAssistant:";
    let row = json!({ "chosen": format!("{q} Fold the sheet."), "rejected": format!("{q} No idea.") });
    gives(row, form, chat(&["user: How do I fold a paper boat?"]), ["Fold the sheet.", "No idea."], &[]);
    let long = "\n\nHuman: Hello.\n\nAssistant: Hello!\n\nHuman: Name a colour.\n\nAssistant:";
    let turns = chat(&["user: Hello.", "assistant: Hello!", "user: Name a colour."]);
    let row = json!({ "chosen": format!("{long} Green."), "rejected": format!("{long} Seven.") });
    gives(row, form, turns.clone(), GREEN, &[]);
    let row = json!({ "prompt": long, "chosen": " Green.", "rejected": " Seven." });
    gives(row, "prompt and two answers", turns.clone(), [" Green.", " Seven."], &[]);
    let row = json!({ "prompt": "Hello.", "chosen": format!("{long} Green."), "rejected": format!("{long} Seven.") });
    gives(row, "prompt and two answers", turns, GREEN, &[]);
    // A text that only speaks of a human is a text.
    let row = json!({ "prompt": "Human: a word?", "chosen": "Human: yes.", "rejected": "no" });
    gives(row, "prompt and two answers", text("Human: a word?"), ["Human: yes.", "no"], &[]);
    let error = fault(&json!({ "chosen": format!("{q}"), "rejected": format!("{q} No idea.") }));
    assert!(error.contains("\"chosen\": the last answer is empty"), "{error}");
}

#[test]
fn forms_with_columns_of_their_own() {
    let q = "Name a colour.";
    let orca = |system: &str| json!({ "system": system, "question": q, "chosen": "Green.", "rejected": "Seven." });
    gives(
        orca("You answer only in French."),
        "Orca DPO",
        chat(&["system: You answer only in French.", "user: Name a colour."]),
        GREEN,
        &[],
    );
    gives(orca(""), "Orca DPO", text(q), GREEN, &[]);
    let row = json!({ "system": "S", "input": q, "chosen": "Green.", "rejected": "Seven.", "generations": ["Green.", "Seven."], "rating": [9, 1] });
    gives(row, "distilabel", chat(&["system: S", "user: Name a colour."]), GREEN, &["generations", "rating"]);
    let row = json!({
        "input": { "messages": [user(q)], "tools": [], "parallel_tool_calls": true },
        "preferred_output": [says("Green.")], "non_preferred_output": [says("Seven.")],
    });
    gives(row, "OpenAI preference", chat(&["user: Name a colour."]), GREEN, &["input.parallel_tool_calls"]);
    let row = json!({
        "conversations": [{ "from": "system", "value": "S" }, { "from": "human", "value": q }],
        "chosen": { "from": "gpt", "value": "Green." }, "rejected": { "from": "gpt", "value": "Seven." },
    });
    gives(row, "ShareGPT (LLaMA-Factory)", chat(&["system: S", "user: Name a colour."]), GREEN, &[]);
    let form = "instruction (LLaMA-Factory, Argilla)";
    let row = json!({ "instruction": "Name one.", "input": "a colour", "system": "S", "history": [["Hello.", "Hello!"]], "chosen": "Green.", "rejected": "Seven." });
    gives(
        row,
        form,
        chat(&["system: S", "user: Hello.", "assistant: Hello!", "user: Name one.\na colour"]),
        GREEN,
        &[],
    );
    let row = json!({ "instruction": q, "input": "", "chosen_response": "Green.", "rejected_response": "Seven.", "chosen_avg_rating": 5 });
    gives(row, form, text(q), GREEN, &["chosen_avg_rating"]);
    let row = json!({ "instruction": q, "chosen": [user(q), says("Green.")], "rejected": [user(q), says("Seven.")] });
    gives(row, form, chat(&["user: Name a colour."]), GREEN, &[]);
    let row = json!({ "question": q, "matching": "Green.", "not_matching": "Seven." });
    gives(row, "BiPO", text(q), GREEN, &[]);
    let row = json!({ "instruction": "Name one.", "input": "a colour", "output": ["Green.", "Seven."] });
    gives(
        row,
        "instruction and two outputs, the better one first (LLaMA-Factory)",
        text("Name one.\na colour"),
        GREEN,
        &[],
    );
}

#[test]
fn behaviours() {
    let form = "Anthropic's evaluations, CAA";
    let row = json!({
        "question": "Would you say this?\n\"Rain is fine.\"", "statement": "Rain is fine.", "label_confidence": 0.9,
        "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No",
    });
    gives(
        row,
        form,
        text("Would you say this?\n\"Rain is fine.\""),
        [" Yes", " No"],
        &["statement", "label_confidence"],
    );
    // Several answers that do not match: a pair each.
    let row = json!({ "id": "x", "question": "Q", "answer_matching_behavior": " (B)", "answer_not_matching_behavior": [" (A)", " (C)"] });
    let set = read(&row);
    let found: Vec<_> = set.pairs.iter().map(|p| [p.id.as_str(), &p.chosen, &p.rejected]).collect();
    assert_eq!(found, [["x", " (B)", " (A)"], ["x.2", " (B)", " (C)"]]);
}

#[test]
fn system_columns_beside_a_verdict() {
    for (row, form) in [
        (json!({"response_0": "Seven.", "response_1": "Green.", "better_response_id": 1}), "PKU-SafeRLHF"),
        (json!({"response1": "Green.", "response2": "Seven.", "overall_preference": -2}), "HelpSteer"),
        (json!({"answer_0": "Green.", "answer_1": "Seven.", "score_0": 2, "score_1": 1}), "WebGPT comparisons"),
        (json!({"response_a": "Green.", "response_b": "Seven.", "winner": "a"}), "two answers and a winner"),
        (json!({"responses": ["Green.", "Seven."], "ranks": [1, 2]}), "answers and their ranks"),
    ] {
        let mut row = row;
        row["question"] = json!("Name a colour.");
        row["prompt"] = json!("Name a colour.");
        row["system_message"] = json!("Be brief.");
        let set = read(&row);
        let pair = &set.pairs[0];
        assert_eq!(set.reading.forms[0].name, form, "{row}");
        assert_eq!(pair.prompt, chat(&["system: Be brief.", "user: Name a colour."]), "{row}");
        assert_eq!([pair.chosen.as_str(), pair.rejected.as_str()], GREEN, "{row}");
    }
}

#[test]
fn messages_in_an_object_and_other_spellings() {
    let q = "Name a colour.";
    let asked = chat(&["user: Name a colour."]);
    for key in ["messages", "conversations", "conversation"] {
        let whole = |answer: &str| json!({ key: [user(q), says(answer)] });
        let row = json!({ "chosen": whole("Green."), "rejected": whole("Seven.") });
        gives(row, "TRL, implicit prompt", asked.clone(), GREEN, &[]);
    }
    let row = json!({ "prompt": { "messages": [user(q)] }, "chosen": "Green.", "rejected": "Seven." });
    gives(row, "prompt and two answers", asked, GREEN, &[]);
    for [prompt, chosen, rejected] in [
        ["prompt", "chosenResponse", "rejectedResponse"],
        ["Question", "Chosen-Answer", "Rejected Answer"],
        ["question", "correct_answer", "incorrect_answer"],
        ["problem", "response_w", "response_l"],
    ] {
        let row = json!({ prompt: q, chosen: "Green.", rejected: "Seven." });
        gives(row, "prompt and two answers", text(q), GREEN, &[]);
    }
}

#[test]
fn two_answers_and_a_verdict() {
    let shp = |label: Value| json!({ "history": "How?", "human_ref_A": "So.", "human_ref_B": "Thus.", "labels": label, "score_A": 5 });
    gives(shp(json!(1)), "SHP", text("How?"), ["So.", "Thus."], &["score_A"]);
    gives(shp(json!(0)), "SHP", text("How?"), ["Thus.", "So."], &["score_A"]);
    assert!(fault(&shp(json!(2))).contains("\"labels\" is \"2\", which prefers neither answer (1 or 0 does)"));
    let pku = |id: u8| json!({ "prompt": "How?", "response_0": "So.", "response_1": "Thus.", "better_response_id": id, "safer_response_id": 0 });
    gives(pku(0), "PKU-SafeRLHF", text("How?"), ["So.", "Thus."], &["safer_response_id"]);
    gives(pku(1), "PKU-SafeRLHF", text("How?"), ["Thus.", "So."], &["safer_response_id"]);
    let arena = |winner: &str| {
        json!({
            "winner": winner, "conversation_a": [user("How?"), says("So.")], "conversation_b": [user("How?"), says("Thus.")],
        })
    };
    gives(
        arena("model_b"),
        "two conversations and a winner (Chatbot Arena)",
        chat(&["user: How?"]),
        ["Thus.", "So."],
        &[],
    );
    let error = fault(&arena("tie (bothbad)"));
    assert!(error.contains("no row prefers one answer") && error.contains("\"tie (bothbad)\""), "{error}");
    let steer =
        |x: f64| json!({ "prompt": "How?", "response_1": "So.", "response_2": "Thus.", "preference_strength": x });
    gives(steer(-2.0), "HelpSteer", text("How?"), ["So.", "Thus."], &[]);
    gives(steer(1.0), "HelpSteer", text("How?"), ["Thus.", "So."], &[]);
    let webgpt = json!({ "question": { "full_text": "How?", "id": 3 }, "answer_0": "So.", "answer_1": "Thus.", "score_0": -0.5, "score_1": 0.5 });
    gives(webgpt, "WebGPT comparisons", text("How?"), ["Thus.", "So."], &["question.id"]);
    let tldr =
        json!({ "info": { "post": "How?" }, "summaries": [{ "text": "So." }, { "text": "Thus." }], "choice": 1 });
    gives(tldr, "two summaries and a choice", text("How?"), ["Thus.", "So."], &[]);
}

#[test]
fn winners_by_name_number_and_text() {
    let form = "two answers and a winner";
    let row = |names: [&str; 2], column: &str, verdict: Value| {
        let mut row = json!({ "prompt": "How?", "system": "", names[0]: "So.", names[1]: "Thus." });
        row[column] = verdict;
        row
    };
    let (letters, ones, zeros) = (["response_a", "response_b"], ["output_1", "output_2"], ["answer_0", "answer_1"]);
    for (names, column, verdict) in [
        (letters, "winner", json!("B")),
        (letters, "winner", json!("model_b")),
        (letters, "preference", json!("Response B")),
        (letters, "label", json!("[[B]]")),
        (letters, "chosen", json!("Thus.")),
        (ones, "preference", json!(2)),
        (ones, "preference", json!(1.8)),
        (ones, "better", json!("output_2")),
        (ones, "winner", json!("second")),
        (zeros, "label", json!(1)),
        (zeros, "preferred", json!("1")),
        (["response1", "response2"], "winner", json!("2")),
    ] {
        gives(row(names, column, verdict), form, text("How?"), ["Thus.", "So."], &[]);
    }
    for (names, column, verdict, expected) in [
        (letters, "winner", json!("tie (bothbad)"), "no row prefers one answer"),
        (letters, "winner", json!("both"), "no row prefers one answer"),
        (ones, "preference", json!(1.5), "no row prefers one answer"),
        (letters, "winner", json!("C"), "names neither answer (\"response_a\" or \"response_b\" does)"),
        (
            letters,
            "label",
            json!(1),
            "\"label\" is 1: with answers called \"response_a\" and \"response_b\" that may be either",
        ),
        (letters, "label", json!(true), "may be either of them"),
        (ones, "label", json!(0), "may be either of them"),
        (zeros, "label", json!(2), "may be either of them"),
    ] {
        let error = fault(&row(names, column, verdict));
        assert!(error.contains(expected), "{column}: {error}");
    }
    // One row shows that the numbers do not count as the names do: no row is read by them.
    let lines: Vec<String> = [1, 1, 1, 0].map(|n| row(ones, "label", json!(n)).to_string()).into();
    let error = load("f.jsonl", &lines.join("\n"), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("4 of 4 rows"), "{error}");
}

#[test]
fn flags_of_winners_and_turns_in_lists() {
    let form = "two answers and flags of the winner (Chatbot Arena)";
    let row = |prompt: Value, a: Value, b: Value, wins: [u8; 3]| {
        json!({
            "prompt": prompt, "response_a": a, "response_b": b,
            "winner_model_a": wins[0], "winner_model_b": wins[1], "winner_tie": wins[2],
        })
    };
    let plain = |wins| row(json!("How?"), json!("So."), json!("Thus."), wins);
    gives(plain([1, 0, 0]), form, text("How?"), ["So.", "Thus."], &[]);
    gives(plain([0, 1, 0]), form, text("How?"), ["Thus.", "So."], &[]);
    assert!(fault(&plain([0, 0, 1])).contains("no row prefers one answer"));
    let turns = |last: &str| json!(["Hello!", last]);
    let both = chat(&["user: Hello.", "assistant: Hello!", "user: How?"]);
    let two = row(json!(["Hello.", "How?"]), turns("So."), turns("Thus."), [0, 1, 0]);
    gives(two, form, both.clone(), ["Thus.", "So."], &[]);
    let text = |list: Value| json!(list.to_string());
    let two = row(text(json!(["Hello.", "How?"])), text(turns("So.")), text(turns("Thus.")), [1, 0, 0]);
    gives(two, form, both, ["So.", "Thus."], &[]);
    let other = row(json!(["Hello.", "How?"]), json!(["Hi!", "So."]), turns("Thus."), [0, 1, 0]);
    assert!(fault(&other).contains("differ before their last answers (from message 2 on)"));
    let empty = row(text(json!(["How?"])), json!("[null]"), text(json!(["Thus."])), [0, 1, 0]);
    assert!(fault(&empty).contains("turn 1: first answer is empty"), "{}", fault(&empty));
    let fewer = row(json!(["Hello.", "How?"]), json!(["So."]), turns("Thus."), [0, 1, 0]);
    assert!(fault(&fewer).contains("first answer has 1 turns, the prompt has 2"));
}

#[test]
fn answers_with_ranks_and_numbers_of_the_best() {
    let ranks = "answers and their ranks";
    let three = |column: &str, values: Value| {
        let mut row = json!({ "prompt": "How?", "responses": ["So.", "Thus.", "No."] });
        row[column] = values;
        row
    };
    gives(three("ranks", json!([2, 1, 3])), ranks, text("How?"), ["Thus.", "No."], &[]);
    gives(three("rank", json!([0, 2, 1])), ranks, text("How?"), ["So.", "Thus."], &[]);
    gives(three("ranking", json!([3, 2, 1])), ranks, text("How?"), ["No.", "So."], &[]);
    // As ranks the third is the best, as an order the second.
    assert!(fault(&three("ranking", json!([2, 3, 1]))).contains("\"ranking\" may be the rank of each answer"));
    let named = json!({ "prompt": "How?", "responses": { "x": "So.", "y": "Thus." }, "scores": { "y": 3, "x": 1 } });
    gives(named, "answers and their scores (distilabel)", text("How?"), ["Thus.", "So."], &[]);
    let number = "answers and the number of the best";
    let two = |column: &str, value: Value| {
        let mut row = json!({ "prompt": "How?", "responses": ["So.", "Thus."] });
        row[column] = value;
        row
    };
    gives(two("label", json!(0)), number, text("How?"), ["So.", "Thus."], &[]);
    gives(two("winner", json!(1)), number, text("How?"), ["Thus.", "So."], &[]);
    gives(two("chosen", json!("Thus.")), number, text("How?"), ["Thus.", "So."], &[]);
    assert!(fault(&two("label", json!(2))).contains("its numbers count from 1, they are read from 0"));
    let mut both = three("chosen_index", json!(2));
    assert!(fault(&both).contains("name the worst in \"rejected_index\""));
    both["rejected_index"] = json!(0);
    gives(both, number, text("How?"), ["No.", "So."], &[]);
}

#[test]
fn columns_inside_objects_and_messages_as_text() {
    let form = "prompt and two answers";
    let inside = json!({ "input": { "prompt": "How?", "system": "S" }, "output": { "chosen": "So.", "rejected": "No.", "by": "x" } });
    let set = read(&inside);
    assert_eq!((&set.pairs[0].prompt, set.reading.forms[0].name), (&chat(&["system: S", "user: How?"]), form));
    let became: Vec<_> = set.reading.columns.iter().map(|c| c.column.as_str()).collect();
    assert_eq!(became, ["input.prompt", "input.system", "output.chosen", "output.rejected"]);
    assert_eq!(set.reading.unused, ["output.by"]);
    // Two candidates for one name: neither is taken.
    let twice = json!({ "a": { "prompt": "How?", "chosen": "So." }, "b": { "prompt": "What?", "rejected": "No." } });
    assert!(fault(&twice).contains("no form of preference data"));
    for prompt in [json!({ "text": "How?" }), json!({ "content": "How?", "id": 3 }), json!(["How?"])] {
        let row = json!({ "prompt": prompt, "chosen": { "completion": says("So.") }, "rejected": { "text": "No." } });
        gives(row, form, text("How?"), ["So.", "No."], &[]);
    }
    let unclear = json!({ "prompt": { "text": "How?", "question": "What?" }, "chosen": "So.", "rejected": "No." });
    assert!(fault(&unclear).contains("name the one to take, as in --prompt-key prompt.KEY"));
    // Messages as JSON in a text; in a prompt column, markup of a template stays a text and is named.
    let as_text = |answer: &str| json!(json!([user("How?"), says(answer)]).to_string());
    let row = json!({ "chosen": as_text("So."), "rejected": as_text("No.") });
    gives(row, "TRL, implicit prompt", chat(&["user: How?"]), ["So.", "No."], &[]);
    let marked = "<|im_start|>user\nHow?<|im_end|>\n";
    let row = json!({ "prompt": marked, "chosen": "So.", "rejected": "No." });
    assert_eq!(read(&row).reading.markup, Some("<|im_start|>user"));
    gives(row, form, text(marked), ["So.", "No."], &[]);
    // Earlier turns beside a prompt.
    let row =
        json!({ "query": "How?", "history": [["Hello.", "Hello!"]], "response": "So.", "rejected_response": "No." });
    let turns = chat(&["user: Hello.", "assistant: Hello!", "user: How?"]);
    gives(row, "prompt, answer and a rejected answer (ms-swift)", turns.clone(), ["So.", "No."], &[]);
    let row = json!({ "query": "How?", "history": [["Hello.", "Hello!"]], "chosen": "So.", "rejected": "No." });
    gives(row, form, turns, ["So.", "No."], &[]);
}

#[test]
fn the_best_answer_against_the_worst() {
    let form = "ranked answers (Nectar, UltraFeedback)";
    let answer = |text: &str, rank: f64| json!({ "answer": text, "model": "m", "rank": rank });
    let row = json!({ "prompt": "\n\nHuman: How?\n\nAssistant: ", "answers": [answer("So.", 2.0), answer("Thus.", 1.0), answer("No.", 3.0)] });
    gives(row, form, chat(&["user: How?"]), ["Thus.", "No."], &[]);
    let scored = |a: f64, b: f64| json!({ "instruction": "How?", "completions": [{ "response": "So.", "overall_score": a }, { "response": "Thus.", "overall_score": b }] });
    gives(scored(7.5, 3.0), form, text("How?"), ["So.", "Thus."], &[]);
    assert!(fault(&scored(3.0, 3.0)).contains("all 2 answers have the same rank or score"));
    let row = json!({ "question": "How?", "answers": [{ "text": "So.", "pm_score": 1 }, { "text": "Thus.", "pm_score": 4 }] });
    gives(row, form, text("How?"), ["Thus.", "So."], &[]);
    let row = json!({ "instruction": "How?", "generations": ["So.", "Thus.", "No."], "ratings": [2, 5, null], "model_name": "m" });
    gives(row, "answers and their scores (distilabel)", text("How?"), ["Thus.", "So."], &["model_name"]);
}

#[test]
fn answers_with_labels() {
    let row = |prompt: &str, answer: &str, label: Value| {
        json!({ "prompt": prompt, "completion": answer, "label": label }).to_string()
    };
    let lines = [
        row("One?", "Yes.", json!(true)),
        row("Two?", "No.", json!(false)),
        row("One?", "Never.", json!(false)),
        row("Two?", "Two.", json!("True")),
        row("One?", "Perhaps.", json!(0)),
    ];
    let set = load("f.jsonl", &lines.join("\n"), &strict()).unwrap();
    let found: Vec<_> = set.pairs.iter().map(|p| (p.prompt.clone(), p.chosen.as_str(), p.rejected.as_str())).collect();
    assert_eq!(found, [(text("One?"), "Yes.", "Never."), (text("Two?"), "Two.", "No.")]);
    assert_eq!((set.reading.unpaired, set.reading.forms[0].name), (1, "answers with labels (KTO)"));
    let error = load("f.jsonl", &lines[..2].join("\n"), &strict()).unwrap_err().to_string();
    assert!(error.contains("(1 good, 1 bad)") && error.contains("compare two answers to the same prompt"), "{error}");
    // As chats.
    let chat_row =
        |answer: &str, label: bool| json!({ "messages": [user("One?"), says(answer)], "label": label }).to_string();
    let set = load("f.jsonl", &[chat_row("Yes.", true), chat_row("No.", false)].join("\n"), &strict()).unwrap();
    assert_eq!((&set.pairs[0].prompt, set.pairs[0].rejected.as_str()), (&chat(&["user: One?"]), "No."));
    let error = load("f.jsonl", &row("One?", "Yes.", json!("perhaps")), &strict()).unwrap_err().to_string();
    assert!(error.contains("\"label\" is \"perhaps\", not true or false"), "{error}");
}

#[test]
fn columns_that_the_user_names() {
    let row = json!({ "in": { "q": "Name a colour." }, "out": [{ "t": "Green." }, { "t": "Seven." }], "role": "S", "chosen": "x" });
    let key = |s: &str| Some(s.to_owned());
    let keys = Keys { prompt: key("in.q"), chosen: key("out.0.t"), rejected: key("out.1.t"), system: key("role") };
    let set = load("f.jsonl", &row.to_string(), &ReadOptions { keys, strict: true, ..ReadOptions::default() }).unwrap();
    let pair = &set.pairs[0];
    assert_eq!(pair.prompt, chat(&["system: S", "user: Name a colour."]));
    assert_eq!([pair.chosen.as_str(), pair.rejected.as_str()], GREEN);
    let became: Vec<_> = set.reading.columns.iter().map(|c| (c.column.as_str(), c.role)).collect();
    assert_eq!(
        became,
        [("in.q", Role::Prompt), ("role", Role::System), ("out.0.t", Role::Chosen), ("out.1.t", Role::Rejected)]
    );
    assert_eq!(set.reading.unused, ["chosen"]);
    // One name, the others as usual; and a name that no row has.
    let keys = Keys { rejected: key("worst"), ..Keys::default() };
    let row = json!({ "prompt": "Name a colour.", "chosen": "Green.", "worst": "Seven.", "rejected": "x" }).to_string();
    let set =
        load("f.jsonl", &row, &ReadOptions { keys: keys.clone(), strict: true, ..ReadOptions::default() }).unwrap();
    assert_eq!((set.pairs[0].rejected.as_str(), set.reading.unused), ("Seven.", vec!["rejected".to_owned()]));
    let error = load(
        "f.jsonl",
        r#"{"prompt": "a", "chosen": "b"}"#,
        &ReadOptions { keys, strict: true, ..ReadOptions::default() },
    )
    .unwrap_err();
    assert!(error.to_string().contains("the key \"worst\" is missing (found: \"prompt\", \"chosen\")"), "{error}");
}

#[test]
fn a_row_that_lacks_its_prompt_is_not_split() {
    let row = |prompt: Value| {
        json!({ "prompt": prompt, "chosen": "It is so, yes.", "rejected": "It is so, no." }).to_string()
    };
    let lines = [row(json!("How?")), row(json!("What?")), row(Value::Null)].join("\n");
    let set = load("f.jsonl", &lines, &ReadOptions::default()).unwrap();
    assert_eq!((set.len(), set.reading.implicit, set.reading.forms.len()), (2, 0, 1));
    assert!(set.reading.skipped[0].reason.contains("the key \"prompt\" is null"), "{:?}", set.reading.skipped);
    let set = load("f.jsonl", &[row(Value::Null), row(Value::Null)].join("\n"), &strict()).unwrap();
    assert_eq!(
        (&set.pairs[0].prompt, set.pairs[0].chosen.as_str(), set.reading.implicit),
        (&text("It is so,"), " yes.", 2)
    );
}

#[test]
fn rows_that_are_lists() {
    let keys = Keys { prompt: Some("0".into()), chosen: Some("2".into()), rejected: Some("1".into()), system: None };
    let rows = "[\"Name a colour.\", \"Seven.\", \"Green.\"]\n";
    for (name, text) in [("f.jsonl", rows.repeat(2)), ("f.json", format!("[{}, {}]", rows.trim(), rows.trim()))] {
        let set =
            load(name, &text, &ReadOptions { keys: keys.clone(), strict: true, ..ReadOptions::default() }).unwrap();
        let found: Vec<_> = set.pairs.iter().map(|p| [p.chosen.as_str(), p.rejected.as_str()]).collect();
        assert_eq!((found, &set.pairs[0].prompt), (vec![GREEN, GREEN], &self::text("Name a colour.")), "{name}");
        let error = load(name, &text, &strict()).unwrap_err().to_string();
        assert!(error.contains("this is a list of 3") && error.contains("--prompt-key 0"), "{error}");
    }
}

#[test]
fn other_columns_and_mixed_files() {
    let error = fault(&json!({ "text": "x" }));
    assert!(
        error.contains("no form of preference data has these columns (found: \"text\"): name them with --prompt-key"),
        "{error}"
    );
    let error = fault(&json!({ "chosen": "a", "rejected": "b" }));
    assert!(error.contains("the key \"prompt\" is missing") && error.contains("--prompt-key"), "{error}");
    // A row without a system message in a file with them, and tables with the texts of lists.
    let rows = format!(
        "{}\n{}\n",
        json!({ "system": "S", "question": "Q", "chosen": "a", "rejected": "b" }),
        json!({ "system": null, "question": "Q", "chosen": "a", "rejected": "b" })
    );
    let set = load("f.jsonl", &rows, &strict()).unwrap();
    assert_eq!(set.pairs[1].prompt, text("Q"));
    assert_eq!(set.reading.forms.iter().map(|f| f.rows).collect::<Vec<_>>(), [1, 1]);
    let csv = "prompt,chosen,rejected\r\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"Q\"\"}]\",a,b\r\n\"[{'role': 'user', 'content': 'Q'}]\",a,b\r\n";
    let set = load("f.csv", csv, &ReadOptions::default()).unwrap();
    assert_eq!((&set.pairs[0].prompt, set.reading.skipped[0].place.ends_with("f.csv:3")), (&chat(&["user: Q"]), true));
    assert!(set.reading.skipped[0].reason.contains("as Python prints it"), "{:?}", set.reading.skipped);
}

/// Rows with one answer: only where they are asked for, and behind every form with two.
#[test]
fn answers_alone() {
    let rows = [
        (r#"{"prompt": "p?", "completion": "c"}"#, "p?", "c"),
        (r#"{"instruction": "Add.", "input": "1 and 2", "output": "3"}"#, "Add.\n1 and 2", "3"),
        (r#"{"input": "p?", "output": "c"}"#, "p?", "c"),
        (r#"{"question": "p?", "chosen": "c"}"#, "p?", "c"),
        (r#"{"messages": [{"role": "user", "content": "p?"}, {"role": "assistant", "content": "c"}]}"#, "p?", "c"),
    ];
    let alone = ReadOptions { alone: true, ..strict() };
    for (row, prompt, answer) in rows {
        let set = load("f.jsonl", row, &alone).unwrap();
        let pair = &set.pairs[0];
        assert_eq!((pair.chosen.as_str(), pair.rejected.as_str()), (answer, ""), "{row}");
        assert_eq!(pair.prompt.text().trim(), prompt, "{row}");
        assert!(set.has_answers_alone());
        assert!(load("f.jsonl", row, &strict()).is_err(), "{row}");
    }
    // A row that has both keeps both, and a name that is given is the one that is read.
    let both = load("f.jsonl", r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#, &alone).unwrap();
    assert_eq!((both.pairs[0].rejected.as_str(), both.has_answers_alone()), ("b", false));
    let keys = Keys { prompt: Some("q".into()), chosen: Some("a".into()), ..Keys::default() };
    let named = load("f.jsonl", r#"{"q": "p?", "a": "c"}"#, &ReadOptions { keys, ..alone.clone() }).unwrap();
    assert_eq!((named.pairs[0].chosen.as_str(), named.pairs[0].rejected.as_str()), ("c", ""));
    for bad in [r#"{"prompt": "p", "completion": " "}"#, r#"{"prompt": "p"}"#, r#"{"completion": "c"}"#] {
        assert!(load("f.jsonl", bad, &alone).is_err(), "{bad}");
    }
}
