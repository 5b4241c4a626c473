//! `bidpo sweep` on a handful of questions, and its report in a browser.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::adapter::{AdapterFile, AdapterKind, LowRank, Target};
use bidpo_core::intervention::{Kind, KindSpec, Scope};
use bidpo_core::steer::{RowChanges, SteeringVector};
use common::bench::Bench;
use predicates::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn bidpo() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command.env("BIDPO_THREADS", "1");
    command
}

/// Twelve questions in the form of TruthfulQA's CSV, and a split of them.
fn data(dir: &Path) -> (PathBuf, PathBuf) {
    let (data, split) = (dir.join("q.csv"), dir.join("split.json"));
    let row = |i: usize| {
        let q = format!("Does topic{i} <make> thing{i}?");
        [format!("c{}", i % 3), q, format!("No, {i} does not"), format!("Yes, {i} & more")]
    };
    common::truthfulqa_csv(&data, (0..12).map(row));
    let mut command = bidpo();
    command.args(["data", "split", "--train", "4", "--valid", "4"]).arg(&data).arg("-o").arg(&split);
    command.assert().success();
    (data, split)
}

/// Layout of a page in the browser, `width` points wide.
fn dom(browser: &str, page: &Path, width: usize) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]);
    command.arg(format!("--window-size={width},900")).arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("file://{}", page.display())).timeout(std::time::Duration::from_secs(60));
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

/// Each compared vector is on the test items at the scale that the rule chooses for it, and at the divergence of the chosen
/// setting.
fn compared_vectors_have_their_own_scales(sweep: &Value) {
    let conditions = sweep["test"]["manifest"]["conditions"].as_array().unwrap();
    let chosen = sweep["chosen"]["percent"].as_f64().unwrap().abs();
    let valid = sweep["valid"]["measures"][0]["conditions"].as_array().unwrap();
    for of in ["random vector 1", "mean difference (CAA)", "other"] {
        let mine: Vec<&Value> = conditions.iter().filter(|c| c["kind"] == "rescaled" && c["of"] == of).collect();
        let own = mine.iter().find(|c| c.get("chosen_on").is_some()).unwrap();
        assert_eq!(
            (&own["chosen_on"]["part"], &own["chosen_on"]["rule"]),
            (&"valid".into(), &"one-standard-error".into())
        );
        // The same rule by hand: the smallest scale of the best one's sign within a standard error of the best.
        let tried: Vec<(f64, f64)> = valid
            .iter()
            .filter_map(|c| {
                let setting = c["condition"].as_str().unwrap().strip_prefix(&format!("{of} at layer "))?;
                let percent = setting.split(", ").nth(1).unwrap().trim_end_matches(" %").parse().unwrap();
                Some((percent, c["value"].as_f64().unwrap()))
            })
            .collect();
        assert_eq!(own["chosen_on"]["settings"], tried.len());
        let best = tried.iter().map(|t| t.1).fold(f64::MIN, f64::max);
        let least = best - (best * (1.0 - best) / 4.0).sqrt();
        let percent = own["percent"].as_f64().unwrap();
        let value = tried.iter().find(|t| t.0 == percent).unwrap().1;
        assert!(value >= least && tried.iter().all(|t| t.1 < best || t.0.abs() >= percent.abs()), "{tried:?} {own}");
        for equal in mine.iter().filter_map(|c| c.get("equal_kl")) {
            let (kl, target) = (equal["kl"].as_f64().unwrap(), equal["target"].as_f64().unwrap());
            assert!((kl / target - 1.0).abs() <= 0.05, "{kl} {target}");
            assert!((target / sweep["price"]["kl_per_token"]["value"].as_f64().unwrap() - 1.0).abs() < 1e-9);
        }
        // At the chosen norm the same computation is not done twice: the figures are the same.
        if percent == chosen {
            let of_test = |name: &str| {
                let rows = sweep["test"]["measures"][0]["conditions"].as_array().unwrap();
                rows.iter().find(|r| r["condition"] == name).unwrap()["value"].clone()
            };
            assert_eq!(of_test(own["name"].as_str().unwrap()), of_test(of));
        }
    }
    assert!(conditions.iter().any(|c| c.get("equal_kl").is_some()), "{conditions:?}");
}

fn steered_rule(sweep: &Value) -> Value {
    assert_eq!(sweep["chosen"]["rule"], sweep["test"]["manifest"]["conditions"][1]["chosen_on"]["rule"]);
    sweep["chosen"]["rule"].clone()
}

/// The price of the chosen setting by hand from the lines of text.jsonl.
fn price_is_that_of_the_text(sweep: &Value, file: &Path, chosen: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    let lines: Vec<Value> = text.lines().skip(1).map(|l| serde_json::from_str(l).unwrap()).collect();
    let sum = |condition: &str, key: &str| -> f64 {
        lines.iter().filter(|l| l["condition"] == condition).map(|l| l["text"][key].as_f64().unwrap()).sum()
    };
    let n = sum(chosen, "n_tokens");
    let near = |name: &str, want: f64| {
        let got = sweep["price"][name]["value"].as_f64().unwrap();
        assert!((got - want).abs() < 1e-9 * (1.0 + want.abs()), "{name}: {got} for {want}");
    };
    near("kl_per_token", sum(chosen, "kl") / n);
    near("perplexity_change", ((sum(chosen, "nll") - sum("unsteered", "nll")) / n).exp() - 1.0);
    near("changed_top_tokens", 1.0 - sum(chosen, "same_top") / n);
}

#[test]
fn a_sweep_and_its_report() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, split) = data(dir.path());
    let vector = common::any_vector(dir.path());
    let sample = dir.path().join("t.txt");
    std::fs::write(&sample, "The cat sat on the mat and looked at the moon. ".repeat(4)).unwrap();
    let out = dir.path().join("sweep");
    let command = |scales: &str| {
        let mut command = bidpo();
        command.args(["sweep", "-p", "pair", "--prompt", "none", "--layers", "14-15", "--scales", scales]);
        command.args(["--shots", "2", "--random", "2", "--system", "Be true.", "--system", "Be brief."]);
        command.arg("-m").arg(&model).arg("-d").arg(&data).arg("-v").arg(&vector).arg("--split").arg(&split);
        command.arg("--compare").arg(format!("other={}", vector.display()));
        command.arg("--text").arg(&sample).arg("-o").arg(&out).arg("--json");
        command
    };
    let run = |scales: &str| -> Value {
        serde_json::from_slice(&command(scales).assert().success().get_output().stdout.clone()).unwrap()
    };
    let first = run("-20%,20%");
    let conditions = |v: &Value| v["measures"][0]["conditions"].as_array().unwrap().clone();
    let names: Vec<String> =
        conditions(&first["valid"]).iter().map(|c| c["condition"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names[..5], ["unsteered", "layer 14, -20 %", "layer 14, +20 %", "layer 15, -20 %", "layer 15, +20 %"]);
    // The chosen setting is within one standard error of the best on validation, and is what the test measures.
    let best = conditions(&first["valid"])[1..5].iter().map(|c| c["value"].as_f64().unwrap()).fold(f64::MIN, f64::max);
    let least = best - (best * (1.0 - best) / 4.0).sqrt();
    let chosen = format!("layer {}, {:+} %", first["chosen"]["layer"], first["chosen"]["percent"].as_f64().unwrap());
    let of = conditions(&first["valid"]).into_iter().find(|c| c["condition"] == chosen.as_str()).unwrap();
    assert!(of["value"].as_f64().unwrap() >= least, "{of} {least}");
    assert_eq!(steered_rule(&first), "one-standard-error");
    price_is_that_of_the_text(&first, &out.join("text.jsonl"), &chosen);
    let steered = &first["test"]["manifest"]["conditions"][1];
    assert_eq!((&steered["name"], &steered["chosen_on"]["settings"]), (&"steered".into(), &4.into()));
    assert_eq!(first["test"]["manifest"]["selection"]["part"], "test");
    assert!(conditions(&first["test"]).len() >= 8, "all baselines");
    compared_vectors_have_their_own_scales(&first);
    // A vector of one layer is moved to another, and the file says so.
    assert_eq!(first["valid"]["manifest"]["conditions"][1]["moved_from"], 15);
    // The scale is what it says: 20 % of the residual norm there, over the vector's own length.
    let norm = first["residual_norm_median"]["15"].as_f64().unwrap();
    let length = (0..576).map(|i| f64::from(i % 7 - 3).powi(2)).sum::<f64>().sqrt();
    let factor = first["valid"]["manifest"]["conditions"][4]["factor"].as_f64().unwrap();
    assert!((factor - 0.2 * norm / length).abs() < 1e-9 * factor, "{factor}");

    // Again, nothing is computed; another scale adds to what is there.
    let before = std::fs::read(out.join("valid.jsonl")).unwrap();
    let again = command("-20%,20%").assert().success().get_output().stderr.clone();
    let again = String::from_utf8_lossy(&again);
    let parts = again.lines().filter(|l| l.ends_with(" conditions")).count();
    assert!(parts >= 6 && again.matches("nothing is computed").count() == parts, "{again}");
    assert_eq!(before, std::fs::read(out.join("valid.jsonl")).unwrap());
    let more = command("-20%,10%,20%").assert().success().get_output().stderr.clone();
    assert!(
        String::from_utf8_lossy(&more).contains("Going on after 20 of 28 results"),
        "{}",
        String::from_utf8_lossy(&more)
    );

    // Settings that an interrupted run left unfinished are no hindrance to a run that does not ask for them.
    let valid = std::fs::read_to_string(out.join("valid.jsonl")).unwrap();
    let cut = valid.lines().filter(|l| !(l.contains("\"condition\":\"layer 15, +10 %\"") && l.contains("\"item\":3,")));
    std::fs::write(out.join("valid.jsonl"), cut.map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let narrow = command("-20%,20%").assert().success().get_output().clone();
    let said = String::from_utf8_lossy(&narrow.stderr).into_owned();
    assert!(said.contains("did not finish them: \"layer 15, +10 %\""), "{said}");
    let wide = command("-20%,10%,20%").assert().success().get_output().clone();
    assert!(String::from_utf8_lossy(&wide.stderr).contains("Going on after 27 of 28 results"));
    // Whatever is asked for now, the choice is among all that was tried, and says so.
    let wide: Value = serde_json::from_slice(&wide.stdout).unwrap();
    let narrow = run("-20%,20%");
    assert_eq!(wide["chosen"], narrow["chosen"]);
    let settings = |sweep: &Value| -> Vec<Value> {
        let conditions = sweep["test"]["manifest"]["conditions"].as_array().unwrap();
        conditions.iter().filter_map(|c| Some(c.get("chosen_on")?["settings"].clone())).collect()
    };
    // The steered model, of two system prompts the best, the first random vector, the other vector, the mean difference.
    assert_eq!(settings(&wide), [6, 2, 3, 3, 3].map(Value::from));
    assert_eq!(settings(&wide), settings(&narrow));
    // The same choice among fewer, as a folder before it was swept further has it.
    let [layer, percent] = [&narrow["chosen"]["layer"], &narrow["chosen"]["percent"]];
    let file = out.join(format!("test-layer{layer}{:+}pc.jsonl", percent.as_f64().unwrap()));
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, before.replacen("\"settings\":6", "\"settings\":4", 1)).unwrap();
    let again = run("-20%,20%");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);

    // A budget on the divergence: what it does not allow is not chosen, and where it allows nothing it says so.
    let lowest: f64 = again["costs"][0]["measures"][1]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| c["condition"].as_str().unwrap().starts_with("layer "))
        .map(|c| c["value"].as_f64().unwrap())
        .fold(f64::MAX, f64::min);
    let within = command("-20%,20%").args(["--budget", &(lowest * 1.01).to_string()]).assert().success();
    let within: Value = serde_json::from_slice(&within.get_output().stdout).unwrap();
    assert!(within["price"]["kl_per_token"]["value"].as_f64().unwrap() <= lowest * 1.01);
    assert_eq!(steered_rule(&within)["budget"]["kl"].as_f64(), Some(lowest * 1.01));
    let none = command("-20%,20%").args(["--budget", &(lowest * 0.5).to_string()]).assert().code(1);
    none.stderr(predicate::str::contains("give a larger budget"));

    // The page of the whole folder.
    let page = dir.path().join("report.html");
    let said = bidpo().arg("report").arg(&out).arg("--html").arg(&page).assert().success().get_output().stdout.clone();
    assert!(String::from_utf8_lossy(&said).contains("configurations (layer, scale) were tried"));
    let html = std::fs::read_to_string(&page).unwrap();
    for outside in ["http:", "https:", "<script", "src=", "url("] {
        assert!(!html.contains(outside), "{outside} in the page: it would not work offline");
    }
    let Some(browser) = common::chromium() else { return };
    let shown = dom(browser, &page, 1200);
    for part in ["over the scale", "What truthfulness costs", "Pareto front", "Protocol, exactly"] {
        assert!(shown.contains(part), "{part:?} is missing in what the browser shows");
    }
    assert_eq!(shown.matches("<svg").count(), html.matches("<svg").count());
    // Nothing stands out of the page on a phone. Only the test's copy holds a script.
    let probe =
        "<script>document.title='width '+document.documentElement.scrollWidth+' of '+innerWidth</script></body>";
    let narrow = dir.path().join("narrow.html");
    std::fs::write(&narrow, html.replace("</body>", probe)).unwrap();
    let shown = dom(browser, &narrow, 500);
    let title = shown.split("<title>width ").nth(1).and_then(|t| t.split('<').next()).unwrap().to_owned();
    let (page_width, window) = title.split_once(" of ").unwrap();
    assert!(page_width.parse::<u32>().unwrap() <= window.parse::<u32>().unwrap(), "{title}");
}

#[test]
fn shards_of_a_sweep_are_put_together() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, split) = data(dir.path());
    let vector = common::any_vector(dir.path());
    let out = dir.path().join("sweep");
    let sample = dir.path().join("t.txt");
    std::fs::write(&sample, "The cat sat on the mat and looked at the moon. ".repeat(24)).unwrap();
    let command = |more: &[&str]| {
        let mut command = bidpo();
        command.args(["sweep", "-p", "pair", "--prompt", "none", "--shots", "2", "--json"]);
        if !more.contains(&"--scales") {
            command.args(["--scales", "-20%,20%"]);
        }
        command.args(["--random", "1", "--system", "Be brief.", "--same-norm-only"]).arg("--text").arg(&sample);
        command.arg("-m").arg(&model).arg("-d").arg(&data).arg("-v").arg(&vector).arg("--split").arg(&split);
        command.arg("-o").arg(&out).args(more);
        command
    };
    command(&["--shard", "1/2"]).assert().success().stdout(predicate::str::contains("chosen").not());
    assert!(out.join("valid.shard-1-of-2.jsonl").exists());
    let alone = command(&[]).assert().code(1).get_output().stderr.clone();
    assert!(String::from_utf8_lossy(&alone).contains("shard 2/2 is missing"), "{}", String::from_utf8_lossy(&alone));
    assert!(!out.join("valid.jsonl").exists());
    command(&["--shard", "2/2"]).assert().success();
    let whole = command(&[]).assert().success().stderr(predicate::str::contains("put together from 2 shards"));
    let found: Value = serde_json::from_slice(&whole.get_output().stdout).unwrap();
    assert_eq!(found["valid"]["measures"][0]["conditions"].as_array().unwrap().len(), 3);
    assert_eq!(found["valid"]["n"], 4);
    assert!(found["chosen"]["layer"] == 15, "{found}");
    assert!(!out.join("valid.shard-1-of-2.jsonl").exists(), "a report would find its items twice");
    bidpo().arg("report").arg(&out).assert().success();

    // More scales by shards: they are added to the file that is there. What is of another run stays.
    let rows = |scales: &str| -> usize {
        let done = command(&["--scales", scales]).assert().success();
        let found: Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
        found["valid"]["measures"][0]["conditions"].as_array().unwrap().len()
    };
    for shard in ["1/2", "2/2"] {
        command(&["--scales", "-20%,10%,20%", "--shard", shard]).assert().success();
    }
    let stranger = out.join("valid.shard-1-of-3.jsonl");
    let whole = std::fs::read_to_string(out.join("valid.jsonl")).unwrap();
    let first = whole.lines().next().unwrap().replace("\"shard\":\"1/1\"", "\"shard\":\"1/3\"");
    std::fs::write(&stranger, first.replace("\"seed\":0", "\"seed\":7") + "\n").unwrap();
    let said = command(&["--scales", "-20%,10%,20%"]).assert().success().get_output().stderr.clone();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("valid.jsonl: 4 results added from 2 shards"), "{said}");
    assert!(said.contains("valid.shard-1-of-3.jsonl is left alone") && said.contains("seed: 7 there, 0 now"), "{said}");
    assert!(stranger.exists() && !out.join("valid.shard-2-of-2.jsonl").exists());
    std::fs::remove_file(&stranger).unwrap();
    assert_eq!(rows("-20%,10%,20%"), 4);
}

/// A gate and a vector with a scope, on a random model: the scales in percent are those of `eval text`, and the random vectors are of
/// the same kind.
#[test]
fn every_kind_is_swept_at_its_layer() {
    let bench = Bench::random("llama", "q8_0");
    let dir = tempfile::tempdir().unwrap();
    let (data, split) = data(dir.path());
    let sample = dir.path().join("t.txt");
    std::fs::write(&sample, "The cat sat on the mat and looked at the moon. ".repeat(24)).unwrap();
    let n_embd = ggml_grad::synth::family("llama").unwrap().shape().n_embd;
    let v: Vec<f32> = (0..n_embd).map(|i| ((i * 7 % 5) as f32 - 2.0) / 8.0).collect();
    let spec = KindSpec::from(Kind::Gate);
    let theta = [vec![0.1; n_embd], vec![0.5], v.clone()].concat();
    let scoped =
        SteeringVector { scope: "answer".parse().unwrap(), ..SteeringVector::single(1, v.clone(), "llama").unwrap() };
    let rows = Some(RowChanges { spec, layer: 1, n_embd, theta });
    let gate = SteeringVector { directions: [].into(), rows, scope: Scope::ALL, ..scoped.clone() };
    for (name, vector) in [("gate.gguf", gate), ("scoped.gguf", scoped)] {
        let file = dir.path().join(name);
        vector.save(&file).unwrap();
        let command = |more: &[&str]| {
            let mut command = bidpo();
            command
                .args(["sweep", "-p", "pair", "--prompt", "none", "--scales", "-20%,20%", "--random", "1", "--json"]);
            command.args(["--train-limit", "4", "--system", "Be brief."]).arg("--text").arg(&sample).args(more);
            command.arg("-m").arg(&bench.model).arg("-d").arg(&data).arg("-v").arg(&file).arg("--split").arg(&split);
            command.arg("-o").arg(dir.path().join(format!("{name}.sweep")));
            command
        };
        let found = command(&[]).assert().success().get_output().stdout.clone();
        let found: Value = serde_json::from_slice(&found).unwrap();
        assert_eq!(found["chosen"]["layer"], 1);
        let norm = found["residual_norm_median"]["1"].as_f64().unwrap();
        let (factor, percent) =
            (found["chosen"]["factor"].as_f64().unwrap(), found["chosen"]["percent"].as_f64().unwrap());
        assert!((factor * bidpo_core::numbers::norm(&v) - percent / 100.0 * norm).abs() < 1e-9 * norm, "{found}");
        // The price of the chosen scale is that of the file at this scale.
        let mut text = bidpo();
        text.args(["eval", "text", "--window", "256", "--limit", "20", "--baselines", "unsteered", "--json", "-d"]);
        text.arg(&sample).arg("-m").arg(&bench.model).args(["-v", &format!("{}:{factor}", file.display())]);
        let text: Value = serde_json::from_slice(&text.assert().success().get_output().stdout).unwrap();
        let kl = text["measures"].as_array().unwrap().iter().find(|m| m["measure"] == "kl_per_token").unwrap();
        let want = kl["conditions"].as_array().unwrap().iter().find(|c| c["condition"] == "steered").unwrap();
        let (got, want) = (found["price"]["kl_per_token"]["value"].as_f64().unwrap(), want["value"].as_f64().unwrap());
        assert!(got > 0.0 && (got - want).abs() < 1e-4 * want, "{name}: {got} for {want}");
        // Its random vector has scales of its own, of other bits.
        let conditions = found["test"]["manifest"]["conditions"].as_array().unwrap();
        let hash = |of: &str| conditions.iter().find(|c| c["name"] == of).unwrap()["control_sha256"].clone();
        assert_ne!(hash("random vector 1"), hash("steered"));
        assert!(conditions.iter().any(|c| c["name"].as_str().unwrap().starts_with("random vector 1, own best scale")));
        let moved = command(&["--layers", "2"]).assert().code(1).get_output().stderr.clone();
        assert!(
            String::from_utf8_lossy(&moved).contains("cannot be moved to layer 2"),
            "{}",
            String::from_utf8_lossy(&moved)
        );
    }
}

/// An adapter at scales of its own: the choice, the price and the test items as for a vector; resumed and reported.
#[test]
fn an_adapter_is_swept_over_its_scales() {
    let bench = Bench::random("llama", "q8_0");
    let dir = tempfile::tempdir().unwrap();
    let (data, split) = data(dir.path());
    let sample = dir.path().join("t.txt");
    std::fs::write(&sample, "The cat sat on the mat and looked at the moon. ".repeat(24)).unwrap();
    let adapter = common::adapters::any_adapter(dir.path(), &bench.model, "mine", &["attn_q", "ffn_down"], 2, 2.0);
    let other = common::adapters::any_adapter(dir.path(), &bench.model, "other", &["attn_v"], 1, 2.0);
    let out = dir.path().join("sweep");
    let command = |scales: &str| {
        let mut command = bidpo();
        command.args(["sweep", "-p", "pair", "--prompt", "none", "--shots", "2", "--system", "Be brief.", "--json"]);
        command.args(["--scales", scales, "--compare", &format!("other={}:0.5", other.display())]);
        command.arg("-m").arg(&bench.model).arg("-d").arg(&data).arg("--lora").arg(&adapter).arg("--split").arg(&split);
        command.arg("--text").arg(&sample).arg("-o").arg(&out);
        command
    };
    let run = |scales: &str| -> Value {
        serde_json::from_slice(&command(scales).assert().success().get_output().stdout.clone()).unwrap()
    };
    let first = run("-1,1");
    let names = |v: &Value| -> Vec<String> {
        let rows = v["measures"][0]["conditions"].as_array().unwrap();
        rows.iter().map(|c| c["condition"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first["valid"]), ["unsteered", "scale -1", "scale +1"]);
    let chosen = &first["chosen"];
    let factor = chosen["factor"].as_f64().unwrap();
    assert!(factor.abs() == 1.0 && chosen["layer"].is_null() && chosen["percent"].is_null(), "{chosen}");
    price_is_that_of_the_text(&first, &out.join("text.jsonl"), &format!("scale {factor:+}"));
    assert!(first["price"]["kl_per_token"]["value"].as_f64().unwrap() > 0.0);
    assert_eq!(first["residual_norm_median"], serde_json::json!({}));
    let of_test = names(&first["test"]);
    assert!(["steered", "sign flipped", "other"].iter().all(|n| of_test.iter().any(|t| t == n)), "{of_test:?}");
    assert!(!of_test.iter().any(|t| t.starts_with("random vector")), "{of_test:?}");
    let conditions = first["test"]["manifest"]["conditions"].as_array().unwrap();
    assert_eq!(conditions[1]["vectors"][0]["adapter"]["ranks"], serde_json::json!([2, 2]));
    assert_eq!(conditions[1]["chosen_on"]["settings"], 2);
    // The other adapter stands in the place of the swept one: it is what an evaluation of it alone has.
    let hash = |name: &str| conditions.iter().find(|c| c["name"] == name).unwrap()["control_sha256"].clone();
    let mut text = bidpo();
    text.args(["eval", "text", "--limit", "1", "--baselines", "unsteered", "--json", "-d"]).arg(&sample);
    text.arg("-m").arg(&bench.model).args(["--lora", &format!("{}:0.5", other.display())]);
    let text: Value = serde_json::from_slice(&text.assert().success().get_output().stdout).unwrap();
    assert_eq!(hash("other"), text["manifest"]["conditions"][1]["control_sha256"]);

    // Again, nothing is computed; another scale adds to what is there.
    let again = command("-1,1").assert().success().get_output().stderr.clone();
    let again = String::from_utf8_lossy(&again);
    let parts = again.lines().filter(|l| l.ends_with(" conditions")).count();
    assert!(parts >= 3 && again.matches("nothing is computed").count() == parts, "{again}");
    let more = run("0.5");
    assert_eq!(names(&more["valid"]), ["unsteered", "scale -1", "scale +1", "scale +0.5"]);
    assert_eq!(more["test"]["manifest"]["conditions"][1]["chosen_on"]["settings"], 3);
    let page = dir.path().join("report.html");
    let said = bidpo().arg("report").arg(&out).arg("--html").arg(&page).assert().success().get_output().stdout.clone();
    assert!(String::from_utf8_lossy(&said).contains("3 configurations (scales) were tried"));
    assert!(std::fs::read_to_string(&page).unwrap().contains("scale of the adapter"));
    // A folder holds one sweep: the file of another adapter is refused, as a vector is.
    let mut stranger = command("2");
    stranger.arg("--lora").arg(&other).assert().code(2);
    let mut stranger = bidpo();
    stranger.args(["sweep", "-p", "pair", "--prompt", "none", "--scales", "2"]).arg("-m").arg(&bench.model);
    stranger.arg("-d").arg(&data).arg("--lora").arg(&other).arg("--split").arg(&split).arg("--text").arg(&sample);
    stranger.args(["--system", "Be brief."]).arg("-o").arg(&out);
    stranger.assert().code(1).stderr(predicate::str::contains("was measured with another file"));
}

#[test]
fn settings_that_cannot_be_tried() {
    let dir = tempfile::tempdir().unwrap();
    let (data, split) = data(dir.path());
    let vector = dir.path().join("v.gguf");
    bidpo_core::steer::SteeringVector::single(1, vec![1.0; 4], "llama").unwrap().save(&vector).unwrap();
    for (vector, missing) in [(Path::new("no.gguf"), "no.gguf"), (&vector, "no.csv")] {
        let mut command = bidpo();
        command.args(["sweep", "-m", "m.gguf", "-d", "no.csv", "-v"]).arg(vector).arg("-o").arg(dir.path().join("o"));
        command.assert().code(1).stderr(predicate::str::contains(missing));
    }
    let of = |split: Option<&Path>| {
        let mut command = bidpo();
        command
            .args(["sweep", "-m", "no.gguf", "-v"])
            .arg(&vector)
            .arg("-d")
            .arg(&data)
            .arg("-o")
            .arg(dir.path().join("o"));
        command.args(split.map(|_| "--split")).args(split);
        String::from_utf8(command.assert().code(1).get_output().stderr.clone()).unwrap()
    };
    assert!(of(None).contains("may have been trained on test items"), "{}", of(None));
    assert!(!of(Some(&split)).contains("may have been trained on test items"));
    let wrong = ["sweep", "-m", "m.gguf", "-v", "v", "-d", "d", "-o", "o", "--scales", "5%%"];
    bidpo().args(wrong).assert().code(2).stderr(predicate::str::contains("no list of scales"));
    // A vector's scales are relative to the residual norm, an adapter's are factors.
    let adapter = dir.path().join("a.gguf");
    let mut file = AdapterFile::new("llama", Some(1.0));
    file.pairs.insert(Target::of("blk.0.attn_q.weight"), LowRank::new(1, vec![1.0; 4], vec![1.0; 4]).unwrap());
    file.save(&adapter, AdapterKind::F32).unwrap();
    let refused = |args: &[&str], what: &str| {
        let mut command = bidpo();
        command.args(["sweep", "-m", "no.gguf", "-d"]).arg(&data).arg("--split").arg(&split);
        command.arg("-o").arg(dir.path().join("o")).args(args);
        command.assert().code(1).stderr(predicate::str::contains(what));
    };
    let (v, a) = (vector.to_str().unwrap(), adapter.to_str().unwrap());
    refused(&["-v", v, "--scales", "5"], "without a percent sign are those of an adapter");
    for option in ["-v", "--lora"] {
        refused(&[option, a, "--scales", "5%"], "an adapter has no norm in the residual stream");
    }
    refused(&["-v", a, "--layers", "1"], "--layers restricts vectors only");
    refused(&["--lora", &format!("{a}:2")], "a sweep chooses the scale itself");
    let both = ["sweep", "-m", "no.gguf", "-d", "d", "-o", "o", "-v", "v", "--lora", "a"];
    bidpo().args(both).assert().code(2).stderr(predicate::str::contains("cannot be used with"));
}
