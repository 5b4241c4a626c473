//! `bidpo train`: what it writes, the same bytes again, interruptions, kernels of smaller CPUs, and losses that are not finite.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::data::{ChatTemplate, PreferenceSet, Prompt, TemplateChoice, permutation};
use bidpo_core::steer::ModelIdentity;
use bidpo_core::train::{
    Checkpoint, HeldOutFractions, IdentitySource, NamedPair, Parts, RecordedIdentity, RunInputs, TrainConfig,
    TrainingBudget, encode_pair,
};
use common::GEMMA;
use common::bench::{Bench, PAIRS, steps, wait};
use ggml_grad::llama::{Model, ModelParams, cpu_features};
use serde_json::Value;
use std::time::Duration;

fn length(v: &[f32]) -> f64 {
    v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>() / length(a) / length(b)
}

#[test]
fn a_run_writes_a_vector_a_card_and_a_summary() {
    let Some(bench) = Bench::new() else { return };
    let s = bench.summary("v.gguf", "--epochs 8 --batch 3 --objective dpo --val 0 --test 0.34");
    assert_eq!(bench.left(), ["v.gguf", "v.md"], "no checkpoint is left behind");
    assert_eq!((s["layer"].as_u64(), s["steps"].as_u64(), s["stop"].as_str()), (Some(26), Some(16), Some("finished")));
    for key in
        ["vector", "card", "norm", "norm_percent", "residual_norm_median", "residual_norm_mean", "lr", "best_step"]
    {
        assert!(!s[key].is_null(), "{key} in {s}");
    }
    let history = s["history"].as_array().unwrap();
    let loss = |i: usize| history[i]["train_loss"].as_f64().unwrap();
    assert_eq!(history.len(), 8, "one entry an epoch");
    // It ends near 0.80 of the first, a little above or below with what is rounded.
    assert!(loss(7) < 0.85 * loss(0), "the training loss must fall: {} to {}", loss(0), loss(7));
    // --lr auto: 1 % of the median residual norm is the length of Adam's step.
    let (lr, median) = (s["lr"].as_f64().unwrap(), s["residual_norm_median"].as_f64().unwrap());
    assert!((lr - 0.01 * median / 576f64.sqrt()).abs() < 1e-9 * lr, "{lr} for {median}");
    let held_out = s["heldout"].as_array().unwrap();
    assert!(!held_out.is_empty(), "{s}");
    // Two held-out pairs are no measurement.
    assert!(s["summary"].as_str().unwrap().starts_with("Only 2 held-out pairs are left"), "{s}");
    // The price: a vector of 1 % steps near the top moves the predictions, and by little.
    let price = &s["price"];
    assert_eq!((price["passages"].as_u64(), price["not_finite"].as_u64()), (Some(2), Some(0)));
    let value = |key: &str| price[key]["value"].as_f64().unwrap();
    let kl = value("kl_per_token");
    assert!(kl > 0.0 && kl < 1.0, "{price}");
    assert!(
        price["kl_per_token"]["low"].as_f64().unwrap() < kl && kl < price["kl_per_token"]["high"].as_f64().unwrap()
    );
    let relative =
        price["perplexity_steered"].as_f64().unwrap() / price["perplexity_unsteered"].as_f64().unwrap() - 1.0;
    assert!((relative - value("perplexity_change")).abs() < 1e-9, "{price}");
    assert!((0.0..0.5).contains(&value("changed_top_tokens")), "{price}");
    assert_eq!((s["threads"].as_u64(), s["split_by"].as_str()), (Some(1), Some("groups")));

    let show = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"))
        .args(["vector", "show", "--json"])
        .arg(bench.path("v.gguf"))
        .assert()
        .success();
    let show = String::from_utf8(show.get_output().stdout.clone()).unwrap();
    let documented = "method objective beta lr layer hook_point layer_convention norm residual_norm_median \
                      residual_norm_mean model_name model_architecture model_quantization model_sha256 template_sha256 \
                      data_name data_sha256 seed version heldout_pairs";
    let vector = bench.vector("v.gguf");
    for key in documented.split_whitespace() {
        assert!(vector.provenance.entries.contains_key(key), "bidpo.{key} is missing");
        assert!(show.contains(key), "{key} in {show}");
    }
    assert_eq!(vector.layers(), [26]);
    assert!((vector.norm(26) - s["norm"].as_f64().unwrap()).abs() < 1e-6);
    let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
    let texts = [
        "# v.gguf",
        "dpo, beta 0.1",
        "layer | 26",
        "prefs.jsonl",
        "How to use it",
        "| threads, CPU | 1 thread, kernels for ",
        "| split | pairs with near-duplicate prompts or answers",
        "Price at scale +1, on 2 neutral passages",
        "% of the mean (",
    ];
    for text in texts {
        assert!(card.contains(text), "{text:?} in {card}");
    }
}

#[test]
fn the_first_loss_is_ln_2_and_the_second_run_is_the_same() {
    let Some(bench) = Bench::new() else { return };
    for (objective, untrained) in [("bidpo", 2f64.ln()), ("dpo", 2f64.ln()), ("ipo", 25.0)] {
        let s = bench.summary("one.gguf", &format!("--steps 1 --batch 6 --objective {objective}"));
        // With v = 0 the steered model is the reference: margin 0, loss -log sigmoid(0), to the last bit.
        assert_eq!(s["history"][0]["train_loss"].as_f64(), Some(untrained), "{objective}");
        assert_eq!(s["heldout"], Value::Null);
    }
    bench.train("v.gguf", "--steps 3 --batch 4").success();
    let first = bench.files("v.gguf");
    bench.train("v.gguf", "--steps 3 --batch 4").success();
    assert!(bench.files("v.gguf") == first, "two runs, two results");
}

#[test]
fn settings_change_the_vector() {
    let Some(bench) = Bench::new() else { return };
    let flags = "--steps 4 --batch 3";
    bench.train("plain.gguf", flags).success();
    let plain = bench.numbers("plain.gguf");
    for (name, more) in [("dpo.gguf", "--objective dpo"), ("seed.gguf", "--seed 1")] {
        bench.train(name, &format!("{flags} {more}")).success();
        let c = cosine(&bench.numbers(name), &plain);
        assert!(c < 0.999_95, "{more}: cosine {c} with the plain run");
    }
    // Adam's first step does not see the gradient's length, the later ones only its changes: clipping at a length that
    // every gradient exceeds makes them equally long.
    bench.train("clip.gguf", &format!("{flags} --clip 1e-6")).success();
    let c = cosine(&bench.numbers("clip.gguf"), &plain);
    assert!((0.8..0.999_999).contains(&c), "cosine {c}");
    bench.train("loose.gguf", &format!("{flags} --clip 1e9")).success();
    assert_eq!(bench.numbers("loose.gguf"), plain, "a limit that is never reached");
    // --renorm changes the length, not the direction.
    let s = bench.summary("renorm.gguf", &format!("{flags} --renorm 5%"));
    let median = s["residual_norm_median"].as_f64().unwrap();
    let renormed = bench.numbers("renorm.gguf");
    assert!((length(&renormed) / median - 0.05).abs() < 1e-7, "{} of {median}", length(&renormed));
    assert!((s["norm_percent"].as_f64().unwrap() - 5.0).abs() < 1e-5);
    assert!(cosine(&renormed, &plain) > 1.0 - 1e-9);
}

#[test]
fn validation_chooses_the_vector_and_the_last_layer_works() {
    let Some(bench) = Bench::new() else { return };
    let s = bench.summary("v.gguf", "--epochs 3 --batch 2 --val 0.34 --test 0 --layer 29");
    let losses: Vec<f64> = s["history"].as_array().unwrap().iter().map(|p| p["valid_loss"].as_f64().unwrap()).collect();
    let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
    assert_eq!(s["untrained_loss"].as_f64(), Some(2f64.ln()));
    assert_eq!(s["beats_untrained"].as_bool(), Some(losses[best] < 2f64.ln()));
    assert_eq!(s["best_step"], s["history"][best]["step"]);
    assert_eq!(bench.vector("v.gguf").layers(), [29]);
}

/// Validation pairs that say the opposite of the training pairs: no epoch beats the untrained model, and that is said.
#[test]
fn a_vector_worse_than_none_is_named() {
    let Some(bench) = Bench::new() else { return };
    let topics = ["sky", "cat", "ice", "fire", "fish", "salt", "wood", "iron", "rain", "snow", "milk", "bread"];
    let questions: Vec<String> = topics.iter().map(|t| format!("Tell me about {t}, please?")).collect();
    let by_seed = Parts::legacy(12, 0, HeldOutFractions { valid: Some(0.34), test: Some(0.0) }).unwrap().split;
    let pairs: Vec<[&str; 3]> = (0..12)
        .map(|i| match by_seed.valid.contains(&i) {
            true => [questions[i].as_str(), " No, never.", " Yes, always."],
            false => [questions[i].as_str(), " Yes, always.", " No, never."],
        })
        .collect();
    bench.write("prefs.jsonl", &pairs);
    let flags = "--epochs 2 --batch 4 --lr 5% --val 0.34 --test 0 --split-by pairs --json";
    let assert = bench.train("v.gguf", flags).success();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("warning: no epoch beat the untrained model on the validation pairs"), "{stderr}");
    let s: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert_eq!(s["beats_untrained"].as_bool(), Some(false), "{s}");
    let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
    assert!(card.contains("**No epoch beat the untrained model") && card.contains("| 0 | 0.6931 | 0.6931 |"), "{card}");
}

#[test]
fn validation_by_one_scale_chooses_by_that_scale() {
    let Some(bench) = Bench::new() else { return };
    let flags = "--epochs 2 --batch 2 --val 0.34 --test 0";
    let losses = |flags: &str| -> Vec<f64> {
        let s = bench.summary("v.gguf", flags);
        s["history"].as_array().unwrap().iter().map(|p| p["valid_loss"].as_f64().unwrap()).collect()
    };
    let (usual, both) = (losses(flags), losses(&format!("{flags} --choose-by both")));
    assert_eq!(usual, both, "BiDPO validates both scales");
    assert_ne!(usual, losses(&format!("{flags} --choose-by positive")));
    let dpo = format!("{flags} --objective dpo");
    assert_eq!(losses(&dpo), losses(&format!("{dpo} --choose-by positive")), "DPO validates scale +1");
}

/// Of several system prompts the one under which the validation pairs do best is compared.
#[test]
fn the_best_of_several_prompts_is_compared() {
    let Some(bench) = Bench::new() else { return };
    let (bad, good) = ("Answer with wrong facts.", "Answer briefly and correctly.");
    let run = |prompts: &[&str], flags: &str| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
        command.args(bench.arguments("v.gguf", &format!("--steps 1 --template chatml {flags}")));
        prompts.iter().for_each(|p| {
            command.args(["--baseline-prompt", p]);
        });
        command.assert()
    };
    let assert = run(&[bad, good], "--val 0.34 --test 0.34 --json").success();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let of = |prompt: &str| -> f64 {
        let line = stderr.lines().find(|l| l.starts_with("system prompt") && l.contains(prompt)).unwrap();
        line.split("difference ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    let s: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    let best = if of(good) > of(bad) { good } else { bad };
    assert_eq!(s["baseline_prompt"].as_str(), Some(best), "{stderr}");
    let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
    assert!(card.contains(&format!("the best of 2 on the validation pairs: \"{best}\"")), "{card}");
    let stderr =
        String::from_utf8(run(&[bad, good], "--val 0 --test 0.34").code(1).get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("2 prompts with --baseline-prompt, but no validation pair"), "{stderr}");
}

#[test]
fn the_other_model_trains_too() {
    let Some(bench) = Bench::with(GEMMA) else { return };
    // A prompt without text: gemma has a BOS token to start from.
    let mut pairs = PAIRS.to_vec();
    pairs.truncate(2);
    pairs.push(["", " Yes, it is.", " No, never."]);
    bench.write("prefs.jsonl", &pairs);
    let assert = bench.train("v.gguf", "--steps 2 --batch 3 --layer 16 --objective dpo").success();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("note: the prompt of one pair is empty"), "{stderr}");
    assert_eq!(bench.vector("v.gguf").n_embd(), 640);
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let Some(bench) = Bench::new() else { return };
    let flags = "--steps 24 --batch 2 --val 0.17 --patience 0";
    let whole = bench.uninterrupted("v.gguf", flags);
    let checkpoint = bench.path("v.ckpt");

    // Before there is a checkpoint there is nothing to resume, and nothing in the way of a new run.
    let mut child = bench.spawn("v.gguf", flags);
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();
    if !checkpoint.exists() {
        assert!(bench.fails("v.gguf", &format!("{flags} --resume")).contains("no checkpoint"));
    }
    // Killed (SIGKILL) again and again, wherever it happens to be, each time a few steps further on.
    let mut resume = "";
    let mut kills = 0;
    for target in [1, 4, 9, 14, 19] {
        let mut child = bench.spawn("v.gguf", &format!("{flags} {resume}"));
        if wait(&mut child, || steps(&checkpoint) >= target) {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
        resume = if checkpoint.exists() { "--resume" } else { "" };
    }
    assert!(kills >= 3, "only {kills} kills hit");
    if checkpoint.exists() {
        // A checkpoint is not overwritten by accident, nor taken for that of another run.
        assert!(!bench.path("v.gguf").exists(), "the vector is written when the run is done");
        let said = bench.fails("v.gguf", flags);
        assert!(said.contains("v.ckpt") && said.contains("--resume") && said.contains("--fresh"), "{said}");
        let before = std::fs::read(&checkpoint).unwrap();
        let said = bench.fails("v.gguf", &format!("{flags} --resume --beta 0.2"));
        assert!(said.contains("v.ckpt belongs to another run"), "{said}");
        let mut other = PAIRS;
        other[0][1] = " Yes.";
        bench.write("other.jsonl", &other);
        let said = bench.fails("v.gguf", &format!("{flags} --resume --data DIR/other.jsonl"));
        assert!(said.contains("v.ckpt belongs to another run"), "{said}");
        assert!(std::fs::read(&checkpoint).unwrap() == before, "a refused run must leave the checkpoint as it was");
        bench.train("v.gguf", &format!("{flags} --resume")).success();
    }
    assert!(bench.files("v.gguf") == whole, "the resumed run ends with other bytes");
    assert!(!checkpoint.exists());
}

#[test]
fn a_damaged_checkpoint_is_refused_and_fresh_starts_again() {
    let Some(bench) = Bench::new() else { return };
    std::fs::write(bench.path("v.ckpt"), "not a checkpoint").unwrap();
    let said = bench.fails("v.gguf", "--steps 1 --resume");
    assert!(said.contains("v.ckpt is damaged") && said.contains("--fresh"), "{said}");
    bench.train("v.gguf", "--steps 1 --fresh").success();
    assert_eq!(bench.left(), ["v.gguf", "v.md"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_what_there_is() {
    let Some(bench) = Bench::new() else { return };
    let flags = "--steps 40 --batch 2";
    let whole = bench.uninterrupted("v.gguf", flags);
    let mut child = bench.spawn("v.gguf", flags);
    let checkpoint = bench.path("v.ckpt");
    assert!(wait(&mut child, || steps(&checkpoint) >= 3), "the run ended before it could be stopped");
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted after step") && said.contains("--resume"), "{said}");
    let saved = bench.numbers("v.gguf");
    assert!(length(&saved) > 0.0 && saved.iter().all(|x| x.is_finite()));
    let taken = steps(&checkpoint);
    assert!((3..40).contains(&taken), "{taken}");
    let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
    assert!(card.contains(&format!("{taken} of 40 planned")) && card.contains("interrupted"), "{card}");

    bench.train("v.gguf", &format!("{flags} --resume")).success();
    assert!(bench.files("v.gguf") == whole, "the resumed run ends with other bytes");
}

#[test]
fn a_loss_that_is_not_finite_leaves_the_last_good_vector() {
    let Some(bench) = Bench::new() else { return };
    for (flags, lr) in [("", "1e30"), ("--val 0.34 --test 0", "1e20")] {
        // Adam's second step is a thousand times as long as the vector here (weight decay 0.05): beyond f32.
        let flags = format!("--steps 6 --batch 6 --schedule constant --weight-decay 0.05 --lr {lr} {flags}");
        let said = bench.fails("v.gguf", &flags);
        assert!(said.contains("the loss was not finite at step ") && said.contains("prefs.jsonl:"), "{said}");
        assert!(said.contains("last good vector, from step 1,") && said.contains("--lr"), "{said}");
        let vector = bench.numbers("v.gguf");
        assert!(vector.iter().all(|x| x.is_finite()) && vector.iter().any(|&x| x != 0.0));
        let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
        assert!(card.contains("stopped: the loss was not finite"), "{card}");
        // The same settings would only end here again: nothing is left to resume.
        assert_eq!(bench.left(), ["v.gguf", "v.md"]);
    }
}

/// Labels swapped at random teach nothing, however often each pair is repeated: no copy of a training pair is held out.
#[test]
fn repeated_pairs_with_random_labels_show_no_effect() {
    let Some(bench) = Bench::new() else { return };
    let set = PreferenceSet::builtin("misconceptions").unwrap();
    let swap = permutation(60, 4);
    let pairs: Vec<[String; 3]> = (0..180)
        .map(|i| {
            let p = &set.pairs[i % 60];
            let Prompt::Text(prompt) = &p.prompt else { unreachable!("the built-in sets hold texts") };
            let (a, b) = if swap[i % 60] < 30 { (&p.chosen, &p.rejected) } else { (&p.rejected, &p.chosen) };
            // Word for word, and with the question put in other words.
            let prompt = if i < 120 { prompt.clone() } else { format!("Tell me this: {prompt}") };
            [prompt, a.clone(), b.clone()]
        })
        .collect();
    let borrowed: Vec<[&str; 3]> = pairs.iter().map(|p| [&*p[0], &*p[1], &*p[2]]).collect();
    bench.write("prefs.jsonl", &borrowed);
    let assert = bench.train("v.gguf", "--steps 24 --batch 8 --lr 4% --json").success();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("60 pairs repeat earlier ones word for word and are left out"), "{stderr}");
    assert!(stderr.contains("120 pairs form 60 groups of near-duplicates"), "{stderr}");
    let s: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    let said = s["summary"].as_str().unwrap();
    assert!(said.starts_with("No effect shown"), "{said}");
    // A number of passages that gives no interval is refused.
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command.args(bench.arguments("v.gguf", "--steps 1 --val 0 --test 0")).env("BIDPO_NEUTRAL_PASSAGES", "1");
    let stderr = String::from_utf8(command.assert().code(1).get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("expected a number from 2 to 24"), "{stderr}");
    // Twenty random vectors, and where the vector ranks among them.
    assert_eq!(s["random"]["draws"], 20);
    let rows = s["heldout"].as_array().unwrap();
    let change = |name: &str| {
        let row = rows.iter().find(|r| r["condition"] == name).unwrap();
        row["logp_diff_change"]["mean"].as_f64().unwrap()
    };
    let own = change("vector, scale +1");
    let above = (1..=20).filter(|i| change(&format!("random vector {i}")) >= own).count();
    assert_eq!(s["random"]["rank"].as_u64(), Some(1 + above as u64), "{s}");
}

#[test]
fn pairs_of_one_prompt_are_not_held_out() {
    let Some(bench) = Bench::new() else { return };
    let answers: Vec<[String; 2]> = (0..14).map(|i| [format!(" Yes {i}."), format!(" No {i}.")]).collect();
    let pairs: Vec<[&str; 3]> = answers.iter().map(|[a, b]| ["Which one is it?", a.as_str(), b.as_str()]).collect();
    bench.write("prefs.jsonl", &pairs);
    let assert = bench.train("v.gguf", "--steps 1 --json").success();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("warning: no pair is held out") && stderr.contains("--split-by"), "{stderr}");
    let s: Value = serde_json::from_slice(&assert.get_output().stdout).unwrap();
    assert!(s["heldout"].is_null());
    let said = bench.fails("v.gguf", "--steps 1 --test 0.2");
    assert!(
        said.contains("3 test pairs (--test) cannot be held out") && said.contains("largest has 14 pairs"),
        "{said}"
    );
    // Who wants it all the same gets it, and the card says so.
    let s = bench.summary("v.gguf", "--steps 1 --test 0.2 --split-by pairs");
    assert!(s["heldout"].is_array());
    let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
    assert!(card.contains("| split | each pair by itself; near-duplicates may be in several parts |"), "{card}");
    // A contradiction is named.
    bench.write("prefs.jsonl", &[["q", "a", "b"], ["q", "b", "a"], ["r", "c", "d"]]);
    let assert = bench.train("v.gguf", "--steps 1").success();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("prefs.jsonl:1 and ") && stderr.contains("prefs.jsonl:2 have the same prompt"), "{stderr}");
}

/// A checkpoint of 0.2.0, which split pair by pair, goes on with its own training pairs.
#[test]
fn a_checkpoint_split_by_pairs_goes_on_with_its_split() {
    let Some(bench) = Bench::new() else { return };
    let mut pairs: Vec<[&str; 3]> = [PAIRS, PAIRS].concat();
    pairs.extend([["Is salt sweet?", " It is salty.", " It is sweet."], ["Is wood metal?", " It is wood.", " Yes."]]);
    bench.write("prefs.jsonl", &pairs);
    let flags = "--steps 400 --batch 2 --val 0.2 --test 0 --patience 0";
    // The identity of such a checkpoint: settings, and the tokens of its parts.
    let model = Model::load(&bench.model, &ModelParams::default()).unwrap();
    let template = ChatTemplate::new(&model, &"none".parse::<TemplateChoice>().unwrap()).unwrap();
    let set = PreferenceSet::load(&bench.path("prefs.jsonl")).unwrap();
    let fractions = HeldOutFractions { valid: Some(0.2), test: Some(0.0) };
    let parts = Parts::legacy(set.len(), 0, fractions).unwrap();
    let pick = |indices: &[usize]| -> Vec<NamedPair> {
        indices.iter().map(|&i| encode_pair(&set.pairs[i], &model, &template, None).unwrap()).collect()
    };
    let mut child = bench.spawn("v.gguf", flags);
    let checkpoint = bench.path("v.ckpt");
    assert!(wait(&mut child, || steps(&checkpoint) >= 2), "the run ended before it could be stopped");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut config = TrainConfig::new("26".parse().unwrap());
    (config.budget, config.batch, config.patience) = (TrainingBudget::Steps(400), 2, 0);
    let inputs = RunInputs {
        model_sha256: ModelIdentity::of(&model).unwrap().sha256,
        template_sha256: template.sha256(),
        ..RunInputs::default()
    };
    let (train, valid) = (pick(&parts.split.train), pick(&parts.split.valid));
    let source = IdentitySource { config: &config, inputs: &inputs, train: &train, valid: &valid };
    // This version's own checkpoint belongs to other parts; with the identity of the old ones it is an old one.
    assert!(!source.accepts(&Checkpoint::identity(&checkpoint).unwrap()));
    let bytes = std::fs::read(&checkpoint).unwrap();
    let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, state) = meta.metadata().as_ref().unwrap()["state"].split_once('\n').unwrap();
    let mut state: Value = serde_json::from_str(state).unwrap();
    let RecordedIdentity::Current { identity } = Checkpoint::identity(&checkpoint).unwrap() else { unreachable!() };
    state["identity"] = serde_json::to_value(source.identity(identity.max_batch_tokens)).unwrap();
    // Checkpoints of 0.2.0 hold no checksum.
    let meta = std::collections::HashMap::from([("state".to_owned(), state.to_string())]);
    let old = safetensors::serialize(tensors.tensors(), Some(meta)).unwrap();
    std::fs::write(&checkpoint, old).unwrap();
    let mut child = bench.spawn("v.gguf", &format!("{flags} --resume"));
    assert!(wait(&mut child, || steps(&checkpoint) >= 5), "the old checkpoint was refused");
    child.kill().unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("was made by an older bidpo, which split pair by pair"), "{said}");
    assert!(source.accepts(&Checkpoint::identity(&checkpoint).unwrap()));
    // With other settings it belongs to another run, as ever.
    let said = bench.fails("v.gguf", &format!("{flags} --resume --beta 0.2"));
    assert!(said.contains("belongs to another run"), "{said}");
}

/// A run on the kernels of smaller CPUs finds the same vector. They round in other places: to 16 bits in the backward pass where the CPU
/// multiplies BF16, and Adam's first steps see only the sign of each component.
#[test]
fn the_kernels_of_smaller_cpus_train_the_same_vector() {
    let Some(bench) = Bench::new() else { return };
    let run = |out: &str, level: Option<&str>| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
        command.args(bench.arguments(out, "--steps 2 --batch 4 --seed 3")).env_remove("BIDPO_CPU");
        command.envs(level.map(|level| ("BIDPO_CPU", level))).assert()
    };
    run("v.gguf", None).success();
    let expected = bench.numbers("v.gguf");
    for level in ["plain", "avx2"] {
        // Not every CPU that runs this has AVX2.
        if level == "avx2" && !cpu_features().iter().any(|f| f.name == "AVX2" && f.in_cpu) {
            continue;
        }
        let out = format!("{level}.gguf");
        run(&out, Some(level)).success();
        let c = cosine(&bench.numbers(&out), &expected);
        eprintln!("{level}: 1 - cosine {:.1e}", 1.0 - c);
        // Measured against AVX512-BF16: 1 - cosine of 1.6e-3 after two steps.
        assert!(c >= 0.99, "{level}: cosine {c} with the vector of this CPU's own kernels");
    }
    let assert = run("x.gguf", Some("sse")).code(1);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for text in ["BIDPO_CPU", "\"sse\"", "plain, avx2, avx512, avx512-vnni or avx512-bf16"] {
        assert!(stderr.contains(text), "{text} in {stderr}");
    }
    assert!(!bench.path("x.gguf").exists());
}
