//! `bidpo report` on results files of older versions, and what it states about a run.

#![allow(clippy::unwrap_used)] // helpers of tests: a failure there is the message

use assert_cmd::Command;
use serde_json::Value;

fn report(arguments: &[&str]) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/results_0_1_0.jsonl");
    let output = Command::cargo_bin("bidpo").unwrap().arg("report").arg(file).args(arguments).assert().success();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

/// A results file of 0.1.0: one random vector, the question hidden without the vector only, no categories.
#[test]
fn results_of_0_1_0_are_read() {
    let json: Value = serde_json::from_str(&report(&["--json"])).unwrap();
    let run = &json[0];
    assert_eq!((&run["manifest"]["bidpo"], &run["manifest"]["threads"]), (&"0.1.0".into(), &2.into()));
    let rows = run["measures"][0]["conditions"].as_array().unwrap();
    let right: Vec<u64> = rows.iter().map(|r| r["right"].as_u64().unwrap()).collect();
    assert_eq!(right, [4, 8, 0, 3, 4, 3]);
    // 4 gained, none lost of 12: SciPy's root of Tango's statistic, and 2 * norm.sf(2).
    let primary = &run["primary"];
    assert_eq!((primary["corrected"].as_bool(), primary["measure"].as_str()), (Some(false), Some("mc1")));
    let close = |v: &Value, x: f64| assert!((v.as_f64().unwrap() - x).abs() < 1e-7, "{v} {x}");
    close(&primary["result"]["p"], 0.04550026389635839);
    close(&primary["result"]["interval"][0], 0.010007991126345367);
    close(&primary["result"]["interval"][1], 0.6093779111273084);
    close(&primary["result"]["exact_p"], 0.125);
    // Eight items against none (p = 0.005, doubled) and four against none (p = 0.046): both below 0.05 after Holm.
    assert_eq!(run["family"]["alpha"].as_f64().map(|a| (a * 100.0).round()), Some(5.0));
    let claims = run["claims"].as_array().unwrap();
    assert_eq!(claims.len(), 3, "{claims:?}");
    assert_eq!((&claims[1]["condition"], &claims[2]["condition"]), (&"sign flipped".into(), &"system prompt".into()));
    assert_eq!(run["random_vectors"]["n"], 1);
    assert!(run["truth_or_style"]["gains"].as_array().unwrap().is_empty() && run["best_rule"].is_null());
}

#[test]
fn a_report_states_its_threads_and_its_primary_comparison() {
    let text = report(&[]);
    for part in [
        "Computed with 2 threads.",
        "Primary comparison: steered minus unsteered on mc1, not corrected.",
        "The vector raises mc1: +33.3 points",
        "One random vector of the same norm: 25.0 %.",
        "P(difference > 0), Jeffreys' prior",
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
}
