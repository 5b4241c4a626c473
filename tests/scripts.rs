//! `scripts/gates.py` and `scripts/adapters.py` on made-up results: prompts, answers, the gate by principal components, scales,
//! learning rates, tables.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::intervention::Kind;
use bidpo_core::steer::SteeringVector;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Runs `gates.py` and returns what it prints; `None` without Python.
fn gates(args: &[&str]) -> Option<String> {
    python("gates.py", args)
}

/// The same of `adapters.py`.
fn adapters(args: &[&str]) -> Option<String> {
    python("adapters.py", args)
}

fn python(name: &str, args: &[&str]) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    let Ok(done) = Command::new("python3").arg(script).args(args).output() else {
        common::missing("python3 is not installed");
        return None;
    };
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    Some(String::from_utf8(done.stdout).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn write_lines(path: &Path, rows: &[Value]) {
    std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

fn read_lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_other_question_is_shown_with_its_options() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["dev", "test"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
        let long = "much ".repeat(200);
        let rows = format!(
            "question,choice0,choice1,choice2,choice3,answer\n{long},1,2,3,4,A\nFirst of {part}?,1,2,3,4,A\n\"Second, quoted?\",5,6,7,8,B\nThird?,1,2,3,4,C\n"
        );
        std::fs::write(folder.path().join(part).join("sums.csv"), rows).unwrap();
    }
    let Some(_) = gates(&["prompts", text(folder.path()), text(folder.path())]) else { return };
    let retained = read_lines(&folder.path().join("retain-prompts.jsonl"));
    let want = [
        json!({"prompt": "First of dev?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "subject": "sums"}),
        json!({"prompt": "Second, quoted?", "subject": "sums"}),
    ];
    assert_eq!(retained, want);
    let outside = read_lines(&folder.path().join("outside-prompts.jsonl"));
    assert!(outside.len() == 2 && outside[0]["prompt"].as_str().unwrap().starts_with("First of test?"));
}

#[test]
fn prompts_get_the_unsteered_models_answers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_lines(&at("asked.jsonl"), &[json!({"prompt": "a"}), json!({"prompt": "b"}), json!({"prompt": "c"})]);
    let written =
        |index, condition: &str, said: &str| json!({"index": index, "condition": condition, "written": {"text": said}});
    let rows = [
        json!({"format": "header"}),
        written(2, "unsteered", "third"),
        written(0, "steered", "other"),
        written(0, "unsteered", "first"),
        written(1, "unsteered", " \n"),
    ];
    write_lines(&at("results.jsonl"), &rows);
    std::fs::write(at("passages.txt"), "One\npassage.\n\nAnother.\n").unwrap();
    let args = ["asked.jsonl", "results.jsonl", "out.jsonl", "passages.txt"].map(at);
    let mut all = vec!["answers"];
    all.extend(args.iter().map(|p| text(p)));
    let Some(_) = gates(&all) else { return };
    let want = [
        json!({"prompt": "a", "response": "first"}),
        json!({"prompt": "c", "response": "third"}),
        json!({"text": "One passage."}),
        json!({"text": "Another."}),
    ];
    assert_eq!(read_lines(&at("out.jsonl")), want);
}

/// Rows that differ along one axis, far more than along any other: the component is that axis, and its threshold parts them.
#[test]
fn the_gate_is_the_first_principal_component() {
    const N: usize = 8;
    const LAYER: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let rows = |side: f32| -> Vec<f32> {
        let row = |i: usize| {
            (0..N).map(move |j| match j {
                2 => side * (1.0 + 0.1 * (i % 3) as f32),
                5 => 1.0 + 0.01 * ((i * 7 % 5) as f32 - 2.0),
                _ => 0.01 * ((i * 3 + j) % 4) as f32,
            })
        };
        (0..12).flat_map(row).collect()
    };
    for (name, side) in [("inside", 1.0), ("outside", -1.0)] {
        let bytes: Vec<u8> = rows(side).iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = TensorView::new(Dtype::F32, vec![12, N], &bytes).unwrap();
        let file = safetensors::serialize([(format!("layer.{LAYER}"), tensor)], None).unwrap();
        std::fs::write(at(&format!("{name}.safetensors")), file).unwrap();
    }
    let direction: Vec<f32> = (0..N).map(|i| i as f32 - 2.5).collect();
    let constant = SteeringVector::single(LAYER, direction.clone(), "llama").unwrap();
    constant.save(&at("constant.gguf")).unwrap();
    let args = ["gate.gguf", "constant.gguf", "inside.safetensors", "outside.safetensors"].map(at);
    let mut all = vec!["pca"];
    all.extend(args.iter().map(|p| text(p)));
    let Some(said) = gates(&all) else { return };
    assert!(said.starts_with("F1 1.000 on the 12 prompts inside and 12 outside"), "{said}");
    let gate = SteeringVector::load(&at("gate.gguf")).unwrap().rows.unwrap();
    assert_eq!((gate.spec.kind, gate.layer, gate.n_embd, gate.spec.mean), (Kind::PromptGate, LAYER, N, false));
    let (w, rest) = gate.theta.split_at(N);
    assert_eq!(rest[1..], direction);
    assert!(w[2] > 0.99, "{w:?}");
    let score = |row: &[f32]| {
        let square: f32 = row.iter().map(|x| x * x).sum::<f32>() / N as f32;
        w.iter().zip(row).map(|(w, x)| w * x / square.sqrt()).sum::<f32>() + rest[0]
    };
    assert!(rows(1.0).chunks(N).all(|row| score(row) > 0.0) && rows(-1.0).chunks(N).all(|row| score(row) < 0.0));
}

#[test]
fn the_best_scale_of_each_kind_is_chosen_and_the_smaller_of_equals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("valid.jsonl");
    // The right answer first; `right` of four items are above the false ones.
    let of = |condition: &str, right: usize| -> Vec<Value> {
        (0..4)
            .map(|i| {
                let best = if i < right { -1.0 } else { -3.0 };
                let answers = json!([{"mc1": true}, {"mc1": false}, {"mc2": true}]);
                json!({"condition": condition, "views": [{"logprobs": [best, -2.0, 0.0]}], "answers": answers})
            })
            .collect()
    };
    let mut rows = vec![json!({"format": "header"})];
    for (condition, right) in [
        ("unsteered", 0),
        ("steered", 2),
        ("constant at 1.4", 2),
        ("constant at 0.7", 1),
        ("gate at 0.7", 1),
        ("gate at 1", 3),
        ("gate at 1.4", 2),
    ] {
        rows.extend(of(condition, right));
    }
    write_lines(&path, &rows);
    let Some(said) = gates(&["scales", text(&path)]) else { return };
    assert_eq!(said, "constant 1 50.0 4\ngate 1 75.0 4\n");
}

#[test]
fn the_table_is_written_between_its_marks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let save = |name: &str, value: Value| std::fs::write(at(name), value.to_string()).unwrap();
    std::fs::write(at("scales.txt"), "constant 1 50.0 128\ngate 1.4 55.0 128\nlowrank 1 40.0 128\n").unwrap();
    let test = |gain: f64, hidden: f64| {
        let against = json!({"difference": gain, "interval": [gain - 0.05, gain + 0.05]});
        let conditions = json!([
            {"condition": "steered", "value": 0.3 + gain, "against_unsteered": against},
            {"condition": "question hidden", "value": 0.2},
            {"condition": "question hidden, steered", "value": 0.2 + hidden},
        ]);
        json!({"n": 278, "measures": [{"measure": "mc1", "conditions": conditions}]})
    };
    save("test-constant.json", test(0.125, 0.03));
    save("test-gate.json", test(0.11, -0.004));
    let measured = |n: usize, measure: &str, [constant, gate]: [f64; 2]| {
        let one = |name: &str, x: f64| json!({"condition": name, "value": x, "against_unsteered": {"difference": x, "interval": [x - 0.01, x + 0.02]}});
        json!([{"n": n, "measures": [{"measure": measure, "conditions": [one("steered", constant), one("gate", gate)]}]}])
    };
    save("text.json", measured(24, "kl_per_token", [0.2, 0.01]));
    save("outside.json", measured(54, "kl_per_token", [0.4, 0.02]));
    save("mmlu.json", measured(57, "accuracy", [-0.02, 0.01]));
    let opened = |opening: f64| json!({"condition": "gate", "text": {"n_tokens": 10, "gate": {"opening": opening}}});
    let closed = json!({"condition": "steered", "text": {"n_tokens": 10}});
    write_lines(&at("inside.jsonl"), &[json!({}), opened(9.0), opened(5.5), closed.clone()]);
    write_lines(&at("outside.jsonl"), &[json!({}), opened(5.0), opened(9.0), opened(0.0), opened(1.0), closed]);
    let page = at("page.md");
    std::fs::write(&page, "before\n<!-- gates: begin -->\nold\n<!-- gates: end -->\nbehind\n").unwrap();
    let Some(_) = gates(&["table", text(folder.path()), text(&page)]) else { return };
    let written = std::fs::read_to_string(&page).unwrap();
    assert!(written.starts_with("before\n<!-- gates: begin -->\n\n| | scale |"), "{written}");
    assert!(written.ends_with("\n<!-- gates: end -->\nbehind\n") && !written.contains("old"), "{written}");
    for row in [
        "| constant vector | 1 | +12.5 [+7.5, +17.5] | 100 % | +3.0 | 0.200 (100 %) | 0.400 (100 %) | -2.0 [-3.0, +0.0] | - | - |",
        "| `gate` | 1.4 | +11.0 [+6.0, +16.0] | 88 % | -0.4 | 0.010 (5 %) | 0.020 (5 %) | +1.0 [+0.0, +3.0] | 100 % of 2 | 25 % of 4 |",
    ] {
        assert!(written.lines().any(|line| line == row), "{row}\n{written}");
    }
    // No results of the low-rank edit: no row. The gate reaches the target, the constant vector is no candidate.
    assert!(
        !written.contains("lowrank") && written.contains("Reached by `gate`.") && written.contains("128 validation")
    );
}

/// A run of `train --json` whose kept epoch is the second of three.
fn trained(valid_loss: f64) -> Value {
    let epoch = |step: usize, valid: f64| json!({"step": step, "train_loss": valid - 0.1, "valid_loss": valid});
    json!({
        "history": [epoch(27, 0.69), epoch(54, valid_loss), epoch(81, 0.7)],
        "best_step": 54,
        "steps": 81,
        "pairs": {"train": 213, "valid": 43, "test": 0},
        "price": {"passages": 24, "kl_per_token": {"value": 0.32, "low": 0.3, "high": 0.35}},
    })
}

#[test]
fn the_learning_rate_has_the_lowest_mean_of_the_kept_epochs() {
    let folder = tempfile::tempdir().unwrap();
    for (rate, seed, loss) in [
        ("0.001", 0, 0.50),
        ("0.001", 1, 0.40),
        ("0.003", 0, 0.42),
        ("0.003", 1, 0.44),
        ("0.01", 0, 0.3),
        ("0.01", 1, 0.6),
    ] {
        let path = folder.path().join(format!("train-lora-8-lr{rate}-{seed}.txt"));
        std::fs::write(path, trained(loss).to_string()).unwrap();
    }
    let Some(said) = adapters(&["rate", text(folder.path()), "0.001 0.003 0.01", "0 1"]) else { return };
    assert_eq!(said, "0.003\n");
}

/// What `eval text --json` prints, with the divergence of the steered model.
fn moved(kl: f64) -> Value {
    let steered = json!({"condition": "steered", "value": kl, "interval": [0.9 * kl, 1.1 * kl]});
    json!({"n": 24, "measures": [{"measure": "kl_per_token", "conditions": [steered]}]})
}

/// KL grows with the square of the scale: 0.32 falls to 0.08 at half of it.
#[test]
fn the_scale_of_equal_price_is_the_root_of_the_prices() {
    let folder = tempfile::tempdir().unwrap();
    let mut vector = trained(0.5);
    vector["price"]["kl_per_token"]["value"] = json!(0.08);
    std::fs::write(folder.path().join("train-constant.txt"), vector.to_string()).unwrap();
    std::fs::write(folder.path().join("train-strong.txt"), trained(0.5).to_string()).unwrap();
    let Some(said) = adapters(&["match", text(folder.path()), "strong"]) else { return };
    assert_eq!(said, "0.5\n");
}

#[test]
fn the_vectors_results_stand_beside_others() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let conditions = json!([
        {"name": "unsteered", "kind": "unsteered"},
        {"name": "steered", "kind": "steered", "control_sha256": "c0", "layers": "15",
            "vectors": [{"file": "constant.gguf", "sha256": "f1", "scale": 1.0}]},
    ]);
    let rows = [
        json!({"manifest": {"items": 1, "conditions": conditions}}),
        json!({"condition": "unsteered", "item": "a"}),
        json!({"condition": "steered", "item": "a"}),
    ];
    write_lines(&at("vector.jsonl"), &rows);
    let Some(_) = adapters(&["beside", text(&at("vector.jsonl")), text(&at("beside.jsonl"))]) else { return };
    let conditions = json!([
        {"name": "unsteered", "kind": "unsteered"},
        {"name": "constant vector", "kind": "other vector", "control_sha256": "c0", "file": "constant.gguf", "sha256": "f1", "scale": 1.0,
            "length": "as in the file, times the scale"},
    ]);
    let want = [
        json!({"manifest": {"items": 1, "conditions": conditions}}),
        json!({"condition": "unsteered", "item": "a"}),
        json!({"condition": "constant vector", "item": "a"}),
    ];
    assert_eq!(read_lines(&at("beside.jsonl")), want);
}

#[test]
fn the_tables_of_adapters_are_written_between_their_marks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let save = |name: &str, value: Value| std::fs::write(at(name), value.to_string()).unwrap();
    save("train-constant.txt", trained(0.55));
    save("train-lora-8-lr0.001-0.txt", trained(0.5));
    std::fs::write(
        at("rows.txt"),
        "constant constant 0 1\nlora-8-lr0.001-0 lora-8 0 1\nlora-8-lr0.001-0 lora-8 0 0.4\n",
    )
    .unwrap();
    let against = |x: f64| json!({"difference": x, "interval": [x - 0.05, x + 0.05]});
    for (row, gain, kl) in
        [("constant-at-1", 0.12, 0.2), ("lora-8-lr0.001-0-at-1", 0.1, 0.4), ("lora-8-lr0.001-0-at-0.4", 0.15, 0.2)]
    {
        let conditions = json!([
            {"condition": "steered", "value": 0.3, "against_unsteered": against(gain)},
            {"condition": "constant vector", "value": 0.38, "steered_against": against(gain - 0.12)},
        ]);
        save(
            &format!("questions-{row}.txt"),
            json!({"n": 278, "measures": [{"measure": "mc1", "conditions": conditions}]}),
        );
        let conditions = json!([{"condition": "steered", "value": 0.3, "against_unsteered": against(-0.01)}]);
        save(
            &format!("subjects-{row}.txt"),
            json!({"n": 114, "measures": [{"measure": "accuracy", "conditions": conditions}]}),
        );
        save(&format!("text-{row}.txt"), moved(kl));
        save(&format!("answers-{row}.txt"), moved(2.0 * kl));
    }
    let page = at("page.md");
    std::fs::write(
        &page,
        "before\n<!-- rates: begin -->\nold\n<!-- rates: end -->\nbetween\n<!-- adapters: begin -->\n<!-- adapters: end -->\nbehind\n",
    )
    .unwrap();
    let Some(_) = adapters(&["table", text(folder.path()), text(&page), "0.001", "0"]) else { return };
    let written = std::fs::read_to_string(&page).unwrap();
    for row in [
        "| 0.001 | 0 | 0.500 | 0.400 | 54 of 81 | 0.320 |",
        "| constant vector | 0 | 1 | +12.0 [+7.0, +17.0] | - | 0.320 [0.300, 0.350] | 0.400 [0.360, 0.440] | -1.0 [-6.0, +4.0] |",
        "| adapter, rank 8 | 0 | 0.4 | +15.0 [+10.0, +20.0] | +3.0 [-2.0, +8.0] | 0.200 [0.180, 0.220] | 0.400 [0.360, 0.440] | -1.0 [-6.0, +4.0] |",
    ] {
        assert!(written.lines().any(|line| line == row), "{row}\n{written}");
    }
    // At scale 1 the price of the training stands, also for an adapter.
    assert!(
        written
            .contains("| adapter, rank 8 | 0 | 1 | +10.0 [+5.0, +15.0] | -2.0 [-7.0, +3.0] | 0.320 [0.300, 0.350] |"),
        "{written}"
    );
    assert!(!written.contains("old"), "{written}");
    assert!(
        written.contains("278 test questions") && written.contains("114 questions") && written.ends_with("behind\n")
    );
}
