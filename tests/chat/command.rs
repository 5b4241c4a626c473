//! `generate` and `chat` as commands: input, output, errors, signals.

use super::*;

/// A vector made by another tool (repeng), at its layers, from the command line.
#[test]
fn generate_with_a_foreign_vector() {
    let Some(model) = common::model(SMOL) else { return };
    let file = common::gold("interop/repeng_pca_smollm2.gguf");
    let run = |more: &[&str]| {
        let mut command = bidpo();
        command.arg("generate").arg("-m").arg(&model).args(["-p", "Tell me a story.", "-n", "8", "--json"]).args(more);
        let out = command.assert().success().get_output().stdout.clone();
        serde_json::from_slice::<serde_json::Value>(&out).unwrap()
    };
    let file = file.to_str().unwrap();
    let plain = run(&[]);
    let zero = run(&["--vector", file, "--scale", "0"]);
    let strong = run(&["--vector", file, "--scale", "-30", "--layers", "10-20"]);
    assert_eq!(zero["text"], plain["text"]);
    assert_ne!(strong["text"], plain["text"]);
    assert_eq!(plain["n_tokens"], 8);
    assert_eq!(plain["stop"], "max_tokens");

    let sweep = run(&["--vector", file, "--layers", "10-20", "--scales", "-30,0"]);
    assert_eq!(sweep[0]["text"], strong["text"], "each scale of --scales answers as that scale alone");
    assert_eq!(sweep[1]["text"], plain["text"]);
    assert_eq!(sweep[0]["vectors"][0]["scale"], -30.0);

    let mut command = bidpo();
    command.arg("generate").arg("-m").arg(&model).args(["-p", "Tell me a story.", "-n", "8"]);
    command.args(["--vector", file, "--scales=-1,1"]);
    command.assert().success().stdout(predicate::str::is_match("(?s)^=== scale -1\n.+\n=== scale 1\n.+\n$").unwrap());
}

#[test]
fn generate_is_repeatable_and_reads_its_prompt_anywhere() {
    let Some(model) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "Name a colour.\n").unwrap();
    let run = |args: &[&str], stdin: &str| {
        let mut command = bidpo();
        command.arg("generate").arg("-m").arg(&model).args(["-n", "6"]).args(args).write_stdin(stdin.to_owned());
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    let given = run(&["-p", "Name a colour."], "");
    assert_eq!(run(&["--prompt-file", file.to_str().unwrap()], ""), given);
    assert_eq!(run(&["--prompt", "-"], "Name a colour.\n"), given);
    assert_eq!(run(&["--prompt-file", "-"], "Name a colour."), given);
    assert_ne!(run(&["-p", "Name a colour.", "--system", "Answer in French, in capitals."], ""), given);
    let sampled = |seed: &str| run(&["-p", "Name a colour.", "--temp", "1.5", "--min-p", "0", "--seed", seed], "");
    assert_eq!(sampled("7"), sampled("7"));
    assert!((1..6).any(|seed| sampled(&seed.to_string()) != sampled("7")), "the seed must matter");
}

#[test]
fn generate_without_a_template_says_so() {
    let Some(model) = common::model(GEMMA) else { return };
    let mut command = bidpo();
    command.arg("generate").arg("-m").arg(&model).args(["-p", "The capital of France is", "-n", "3"]);
    command
        .assert()
        .success()
        .stderr(predicate::str::contains("carries no chat template"))
        .stdout(predicate::str::is_match("^[^\n]+\n$").unwrap());
}

/// The chat, driven through a pipe: answers on stdout, everything else on stderr.
#[test]
fn chat_by_pipe() {
    let Some(model) = common::model(SMOL) else { return };
    let file = common::gold("interop/repeng_pca_smollm2.gguf");
    let run = |lines: &str| {
        let mut command = bidpo();
        command.arg("chat").arg("-m").arg(&model).args(["-n", "6"]).write_stdin(lines.to_owned());
        let out = command.assert().success().get_output().clone();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(out.stdout), text(out.stderr))
    };
    let file = file.to_str().unwrap();
    let (plain, _) = run("Name a river.");
    let (out, talk) = run(&format!(
        "Name a river.\n/reset\n\n/vector {file} -40\nName a river.\n/reset\n/off\nName \\\na river.\n/quit\nName a river.\n"
    ));
    let answers: Vec<_> = out.lines().collect();
    assert!(out.starts_with(&plain), "{out:?} {plain:?}");
    assert!(answers.len() >= 3, "{out:?}");
    assert!(talk.contains("repeng_pca_smollm2: scale -40") && talk.contains("steering is off"), "{talk}");

    let (out, talk) = run("/scale 2\n/sclae 2\n/scale x y\n/vector no/such.gguf\n/vector\n/help\n/scale\n");
    assert_eq!(out, "");
    for hint in
        ["no vector is named", "did you mean /scale?", "usage: /scale", "no/such.gguf", "usage: /load", "/reset"]
    {
        assert!(talk.contains(hint), "{hint}: {talk}");
    }
    let (out, talk) = run(&format!("/vector {file}\n/scale 5%\n/scale nan\n/scale repeng_pca_smollm2=-2\n"));
    assert_eq!(out, "");
    assert!(talk.contains("does not say the residual norm: measured") && talk.contains("(5.0 % of the"), "{talk}");
    assert!(talk.contains("is not a scale"), "{talk}");
    assert!(talk.contains("repeng_pca_smollm2: scale -2"), "{talk}");
}

#[test]
fn bad_input_gets_a_clear_error() {
    let missing = Path::new("no/such/model.gguf");
    let fails = |model: &Path, args: &[&str], code: i32, message: &str| {
        let mut command = bidpo();
        command.arg("generate").arg("-m").arg(model).args(args);
        command.assert().code(code).stdout("").stderr(predicate::str::contains(message));
    };
    fails(missing, &["-p", "x"], 1, "no/such/model.gguf");
    fails(missing, &["-p", " "], 1, "the prompt is empty");
    fails(missing, &["--prompt-file", "no/prompt.txt"], 1, "no/prompt.txt");
    fails(missing, &[], 2, "--prompt");
    fails(missing, &["-p", "x", "--temp", "hot"], 2, "from 0 to 100");
    fails(missing, &["-p", "x", "--top-p", "2"], 2, "from 0 to 1");
    fails(missing, &["-p", "x", "--template", "chatmk"], 2, "chatml");
    fails(missing, &["-p", "x", "--vector", "v.gguf", "--scale", "strong"], 2, "is not a scale");
    fails(missing, &["-p", "x", "--scales", "1"], 2, "--vector");
    let Some(model) = common::model(SMOL) else { return };
    fails(&model, &["-p", "x", "--vector", "no/such.gguf"], 1, "no/such.gguf");
    fails(&model, &["-p", "x", "--vector", model.to_str().unwrap()], 1, "SmolLM2");
    fails(&model, &["-p", "x", "--template", "no.jinja"], 1, "no.jinja");
    fails(&model, &["-p", "one two three four five", "--ctx", "8"], 1, "--ctx");
    let vector = common::gold("interop/repeng_pca_smollm2.gguf");
    let v = vector.to_str().unwrap();
    fails(&model, &["-p", "x", "--vector", v, "--layers", "20-40"], 1, "takes 1-29");
    fails(&model, &["-p", "x", "--vector", v, "--convention", "input"], 2, "cvector-generator");
    if let Some(gemma) = common::model(GEMMA) {
        fails(&gemma, &["-p", "x", "--vector", v, "--scale", "5%"], 1, "576");
        fails(&gemma, &["-p", "x", "--vector", v], 1, "576");
    }
}

/// Ctrl-C ends the answer, keeps what was said so far, and says so in the exit code.
#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer() {
    use std::io::Read;
    use std::process::Stdio;
    let Some(model) = common::model(SMOL) else { return };
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("bidpo"))
        .env("BIDPO_THREADS", "1")
        .args(["generate", "-n", "3000", "-p", "Write a very long story about a dragon.", "-m"])
        .arg(&model)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut text = vec![0u8; 20];
    stdout.read_exact(&mut text).unwrap(); // the answer has begun
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    stdout.read_to_end(&mut text).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text.ends_with(b"\n"), "the line is finished");
    let talk = String::from_utf8(out.stderr).unwrap();
    assert!(talk.contains("it was stopped"), "{talk}");
}

/// A conversation's commands through a pipe: vectors with names, layers, both answers, the transcript.
#[test]
fn chat_commands_by_pipe() {
    let Some(model) = common::model(SMOL) else { return };
    let flowery = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors/plain-vs-flowery.SmolLM2-135M-Instruct.Q4_1.gguf")
        .display()
        .to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let run = |lines: &str| {
        let mut command = bidpo();
        command
            .env("COLUMNS", "80")
            .env("HOME", folder.path())
            .arg("chat")
            .arg("-m")
            .arg(&model)
            .args(["-n", "24"])
            .write_stdin(lines.to_owned());
        let out = command.assert().success().get_output().clone();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(out.stdout), text(out.stderr))
    };
    let (json, markdown) = (path("talk.json"), path("talk.md"));
    let at_home = "~/talk.md";
    let (out, talk) = run(&format!(
        "/load {flowery} style 10%\n/layers\n/layers 3-5\n\"\"\"\nWhat is\nthe moon?\n\"\"\"\n/scale style=-1\n/retry\n\
         /compare\n/save {json}\n/save {at_home}\n/save {model}\n/stats\n/undo\n/unload style\n/unload style\n",
        model = model.display(),
    ));
    for said in [
        "style: scale 0.983 (10.0 % of the residual norm)",
        "style at 0.983, layer 15",
        "15  norm 16.98, 10.0 % of the residual norm",
        "steers layer 15, none of them in layers 3-5",
        "style: scale -1 ",
        "2 messages: ",
        "is there already",
        "last answer: prompt",
        "reused",
        "of 4096 tokens used",
        "taken back: What is\nthe moon?",
        "no vector is loaded",
        "no vector is named style",
    ] {
        assert!(talk.contains(said), "{said}: {talk}");
    }
    assert!(out.contains("unsteered") && out.contains("  |  style -1"), "{out}");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(kept["messages"][0], serde_json::json!({ "role": "user", "content": "What is\nthe moon?" }));
    assert_eq!(
        (&kept["messages"][1]["role"], &kept["messages"][1]["steering"][0]["scale"]),
        (&"assistant".into(), &(-1.0).into())
    );
    let answer = kept["messages"][1]["content"].as_str().unwrap();
    assert!(out.contains(answer) && std::fs::read_to_string(&markdown).unwrap().contains(answer), "{answer} {out}");
    assert_eq!(kept["messages"].as_array().unwrap().len(), 2, "the comparison is not part of it");

    // Several scales at once: all of them or none.
    let (_, talk) = run(&format!("/load {flowery} a\n/load {flowery} b\n/scale a=2 c=1\n/scale\n/scale a=2 b=-5%\n"));
    let scales: Vec<&str> = talk.lines().filter(|l| l.starts_with("a: ") || l.starts_with("b: ")).collect();
    let ends: Vec<&str> = scales.iter().map(|l| l.split(" (").next().unwrap()).collect();
    assert_eq!(ends[1..], ["a: scale 1", "b: scale 1", "a: scale 1", "b: scale 1", "a: scale 2", "b: scale -0.491"]);
}

/// The model's text cannot control the terminal: drawn from the whole vocabulary, it holds control characters.
#[test]
fn control_characters_of_the_model_do_not_come_out() {
    let Some(model) = common::model(SMOL) else { return };
    let sampling = ["--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "200", "--seed", "4"];
    let question = "Name a river.";
    let run = |command: &str, more: &[&str], stdin: &str| {
        let mut run = bidpo();
        run.arg(command).arg("-m").arg(&model).args(sampling).args(more);
        run.write_stdin(stdin.to_owned()).assert().success().get_output().stdout.clone()
    };
    let raw: serde_json::Value = serde_json::from_slice(&run("generate", &["--json", "-p", question], "")).unwrap();
    let raw = raw["text"].as_str().unwrap();
    let shown = String::from_utf8(run("chat", &[], question)).unwrap();
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(raw.contains(obeyed), "this seed draws no control character any more: take another");
    assert!(!shown.contains(obeyed), "{shown:?}");
    assert_eq!(shown.strip_suffix('\n').unwrap(), printable(raw));
}
