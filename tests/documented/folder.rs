//! The folder in which a page's commands run: small files under the names that the pages use.

use crate::common;
use bidpo_core::layers::Layers;
use bidpo_core::steer::SteeringVector;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

/// Width of the model's residual stream.
const WIDTH: usize = 64;
/// Names under which pages have a model.
const MODELS: [&str; 6] =
    ["M.gguf", "MODEL.gguf", "model.gguf", "JUDGE.gguf", "OTHER.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"];
/// Names under which pages have a vector for one layer.
const VECTORS: [&str; 2] = ["V.gguf", "flowery.gguf"];
/// Names under which pages have preference pairs.
const PAIRS: [&str; 5] = ["mine.jsonl", "prefs.jsonl", "on.jsonl", "off.jsonl", "pairs.jsonl"];

/// The turns of a chat, as ChatML has them.
const TURNS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                     {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A random model of 30 layers, made once for all pages.
fn model() -> &'static Path {
    static MODEL: OnceLock<TempDir> = OnceLock::new();
    let folder = MODEL.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let sizes = "--layers 30 --embd 64 --heads 2 --kv-heads 1 --head-dim 32 --ff 96 --ctx 2048";
        let mut command = Command::new(env!("CARGO_BIN_EXE_bidpo"));
        command.args(["synth", "--arch", "llama", "--type", "q8_0"]).args(sizes.split(' '));
        let output = command.arg("-o").arg(folder.path().join("m.gguf")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        give_template(&folder.path().join("m.gguf"));
        folder
    });
    // Lives as long as the process.
    Box::leak(folder.path().join("m.gguf").into_boxed_path())
}

/// Adds a chat template to a GGUF file (the key `tokenizer.chat_template`, as GGUF's specification lays it out). Its text is
/// filled up so that the entry's length is a multiple of 32: tensor data stays aligned.
fn give_template(path: &Path) {
    let key = b"tokenizer.chat_template";
    let mut text = "{% if date_string is defined %}{{ date_string }}{% endif %}{% if reasoning_effort is defined %}\
                    {{ reasoning_effort }}{% endif %}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}"
        .to_owned();
    text += TURNS;
    let fixed = 8 + key.len() + 4 + 8;
    text += &format!("{{#{}#}}", " ".repeat((fixed + text.len() + 4).next_multiple_of(32) - fixed - text.len() - 4));
    let entry = [
        &(key.len() as u64).to_le_bytes()[..],
        key,
        &8u32.to_le_bytes(), // the type of a string
        &(text.len() as u64).to_le_bytes(),
        text.as_bytes(),
    ]
    .concat();
    let mut file = std::fs::read(path).unwrap();
    // Magic, version, number of tensors, number of entries.
    let n_entries = u64::from_le_bytes(file[16..24].try_into().unwrap()) + 1;
    file[16..24].copy_from_slice(&n_entries.to_le_bytes());
    file.splice(24..24, entry);
    std::fs::write(path, file).unwrap();
}

fn vector(path: &Path, layers: std::ops::RangeInclusive<usize>, sign: f32) {
    let direction = |layer: usize| (0..WIDTH).map(move |i| sign * ((i * 7 + layer) % 5) as f32 - 2.0);
    let directions: Vec<f32> = layers.clone().flat_map(direction).collect(); // [n_layers, n_embd]
    let mut vector = SteeringVector::from_layers(&Layers::new(layers.clone()).unwrap(), &directions, "llama").unwrap();
    for layer in layers {
        vector.provenance.set_float(&format!("residual_norm_median.{layer}"), 100.0);
    }
    vector.save(path).unwrap();
}

/// Makes it.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let write = |name: &str, text: String| std::fs::write(at(name), text).unwrap();
    for name in ["models", "cache", "vectors", "DIR"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    // A link would do, but an output may not be an input, by identity.
    MODELS.iter().for_each(|name| assert!(std::fs::copy(model(), at(name)).unwrap() > 0));
    std::fs::copy(model(), at("models/SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    for (i, set) in ["misconceptions", "plain-vs-flowery"].into_iter().enumerate() {
        let name = format!("vectors/{set}.SmolLM2-135M-Instruct.Q4_1.gguf");
        vector(&at(&name), 15..=15, 1.0 - 2.0 * i as f32);
    }
    VECTORS.iter().for_each(|name| vector(&at(name), 15..=15, 1.0));
    ["VECTOR.gguf", "generated.gguf"].iter().for_each(|name| vector(&at(name), 1..=29, 1.0));
    vector(&at("vector.gguf"), 10..=20, 1.0);

    let pair = |i: usize| {
        let answers = ["A plum.", "Plums, I think."];
        format!(
            "{{\"prompt\": \"Fruit number {i}?\", \"chosen\": \"{}\", \"rejected\": \"{}\"}}\n",
            answers[0], answers[1]
        )
    };
    PAIRS.iter().for_each(|name| write(name, (0..40).map(pair).collect()));
    write("prompts.txt", "Hello.\nWhat is a lake?\nTell me about rain.\n".to_owned());
    write("sample.txt", "The mill stands by the river. It has not turned for years. ".repeat(40));
    write(
        "f.jsonl",
        (0..20)
            .map(|i| {
                let value = serde_json::json!({
                    "task": {"text": format!("Which tool for job {i}?")}, "good": format!("Tool {i} does it."),
                    "outputs": [{"text": "none"}, {"text": format!("None fits job {i}.")}],
                });
                format!("{value}\n")
            })
            .collect(),
    );
    let triple = |i: usize| format!("[\"Which sail for wind {i}?\", \"The jib.\", \"A bus, number {i}.\"]");
    write("triples.json", format!("[{}]", (0..20).map(triple).collect::<Vec<_>>().join(",\n")));
    write(
        "arc.jsonl",
        (0..6)
            .map(|i| {
                let value = serde_json::json!({
                    "id": i, "question": format!("What does plant {i} need?"), "answerKey": "B",
                    "choices": {"text": ["a hat", "some light", "a stone"], "label": ["A", "B", "C"]},
                });
                format!("{value}\n")
            })
            .collect(),
    );
    write("think.jinja", TURNS.to_owned());

    // Scripts install and build: only that they are there is tested.
    std::fs::create_dir(at("scripts")).unwrap();
    for entry in std::fs::read_dir(Path::new(super::TOP).join("scripts")).unwrap().map(Result::unwrap) {
        let stub = at("scripts").join(entry.file_name());
        std::fs::write(&stub, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(stub, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    let question = |i: usize| {
        let place = format!("{}{}", ["north", "south", "east", "west", "mid"][i % 5], i);
        [
            format!("kind {}", i % 7),
            format!("What grows in {place}?"),
            format!("Grass grows in {place}."),
            "Coins.".to_owned(),
        ]
    };
    common::truthfulqa_csv(&at("TruthfulQA.csv"), (0..560).map(question));
    std::fs::copy(common::data("multiple_choice.json"), at("mc_task.json")).unwrap();
    copy_folder(&common::data("mmlu"), &at("mmlu"));
    let cases = Path::new(super::TOP).join("tests/cases/data");
    std::fs::copy(cases.join("trl.parquet"), at("prefs.parquet")).unwrap();
    std::fs::copy(common::gold("torch/vec_ep1_layer2.pt"), at("vec_ep1_layer15.pt")).unwrap();
    let row: Vec<u8> = (0..WIDTH).flat_map(|i| (i as f32 - 20.0).to_le_bytes()).collect();
    std::fs::write(at("direction.npy"), npy(WIDTH, &row)).unwrap();
    folder
}

/// A list of `n` numbers of four bytes in NumPy's format, version 1.
fn npy(n: usize, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n},), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
