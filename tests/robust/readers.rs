//! Small files that cost much: bounds are checked before the work.

use crate::tiny;
use bidpo_core::layers::Layers;
use bidpo_core::steer::SteeringVector;
use std::path::Path;
use std::time::{Duration, Instant};

/// The error of a command that has to end within seconds.
fn refusal(folder: &Path, args: &[&str]) -> String {
    let started = Instant::now();
    let output = tiny::bidpo().current_dir(folder).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(started.elapsed() < Duration::from_secs(20), "{args:?} took {:?}", started.elapsed());
    assert!(!said.contains('\u{1b}') && !said.contains("panicked"), "{said}");
    said
}

fn npy(header: &str, version: u8) -> Vec<u8> {
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    let rest: &[u8] = if version > 1 { &[0, 0] } else { &[] };
    [&b"\x93NUMPY"[..], &[version, 0], &length, rest, header.as_bytes()].concat()
}

#[test]
fn headers_of_npy_files_are_short_and_flat() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.npy");
    let plain = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";
    let long = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (2,), {} }}\n", " ".repeat(5000));
    for (header, words) in [
        ("{".repeat(40), "40 brackets"),
        ("[".repeat(60), "60 brackets"),
        ("(".repeat(30), "30 brackets"),
        (format!("{{'descr': {}'<f4'{}, ", "[(".repeat(9), ")]".repeat(9)), "brackets"),
        (long, "at most 4096"),
        ("\u{1b}]0;title\u{7}".to_owned(), ""),
    ] {
        for version in [1, 2, 3] {
            std::fs::write(&path, npy(&header, version)).unwrap();
            let said = refusal(dir.path(), &["vector", "convert", "v.npy", "--layers", "3", "-o", "o.gguf"]);
            assert!(said.contains(words), "{said}");
        }
    }
    std::fs::write(&path, [npy(plain, 1), vec![0, 0, 128, 63, 0, 0, 0, 64]].concat()).unwrap();
    let vector = SteeringVector::open(&path, Some(&Layers::one(3))).unwrap().vector;
    assert_eq!(vector.directions[&3], [1.0, 2.0]);
}

#[test]
fn files_that_never_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["zero.safetensors", "zero.npy"] {
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(name)).unwrap();
        let said = refusal(dir.path(), &["vector", "convert", name, "--layers", "3", "-o", "o.gguf"]);
        assert!(said.contains("more than 268435456 bytes"), "{said}");
    }
}

#[test]
fn keys_that_gguf_cannot_hold_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (key, shown) in [("a\0b", "a\\0b"), ("", "\"\""), ("general.alignment", "general.alignment")] {
        let mut vector = SteeringVector::single(2, vec![0.5; 8], "llama").unwrap();
        vector.provenance.set_str("method", "x");
        vector.provenance.entries.insert(key.into(), ggml_grad::llama::GgufValue::Int(1));
        std::fs::write(dir.path().join("k.safetensors"), vector.to_safetensors().unwrap()).unwrap();
        let output = tiny::bidpo()
            .current_dir(&dir)
            .args(["vector", "convert", "k.safetensors", "-o", "o.gguf"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{said}");
        if key.contains('\0') {
            assert!(output.status.code() == Some(1) && said.contains(shown), "{said}");
        }
    }
}

#[test]
fn a_split_of_any_number_of_items_costs_what_its_lists_cost() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("q.csv");
    let question = |i: usize| ["Misconceptions", "q", "r", "w"].map(|t| format!("{t} {i}"));
    crate::common::truthfulqa_csv(&csv, (0..5).map(question));
    let hash = ggml_grad::files::sha256_of_file(&csv).unwrap();
    for items in ["30000000000", "1000000000000", "4611686018427387904", "9223372036854775808", "18446744073709551615"]
    {
        let text = format!(
            "{{\"bidpo_split\":1,\"data\":\"q.csv\",\"data_sha256\":\"{hash}\",\"items\":{items},\"seed\":0,\"groups\":[],\
             \"train\":[0],\"valid\":[1],\"test\":[2,4]}}"
        );
        std::fs::write(dir.path().join("s.json"), text).unwrap();
        let said = refusal(dir.path(), &["data", "pairs", "q.csv", "--split", "s.json", "-o", "p.jsonl"]);
        assert!(said.contains("another number of items"), "{said}");
    }
}

#[test]
fn long_lists_of_layers_are_read_in_linear_time() {
    let started = Instant::now();
    let list: Vec<String> = (0..=65_535).rev().map(|l| l.to_string()).collect();
    assert_eq!(list.join(",").parse::<Layers>().unwrap().len(), 65_536);
    let twice = format!("{},7", list.join(","));
    assert!(twice.parse::<Layers>().unwrap_err().to_string().contains("layer 7 is named twice"));
    assert!("0-65535,65535".parse::<Layers>().is_err());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn devices_are_no_data() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["zero.jsonl", "zero.csv", "zero.jinja", "zero.txt"] {
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(name)).unwrap();
    }
    tiny::model(dir.path(), tiny::q8_0());
    let generate = ["generate", "-m", "tiny.gguf", "-n", "1"];
    for args in [
        &["data", "inspect", "zero.jsonl"][..],
        &["data", "inspect", "zero.csv"],
        &["report", "zero.jsonl"],
        &[&generate[..], &["--prompt-file", "zero.txt"]].concat(),
        &[&generate[..], &["--prompt", "a", "--template", "zero.jinja"]].concat(),
    ] {
        let said = refusal(dir.path(), args);
        assert!(said.contains("more than 268435456 bytes"), "{said}");
    }
}

#[test]
fn a_damaged_parquet_file_gives_one_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read("tests/cases/data/trl.parquet").unwrap();
    // The dictionary of a column has more values than its page: the reader of the pages panics.
    assert_eq!((bytes[106], bytes[741]), (0o4, 0o157));
    (bytes[106], bytes[741]) = (0o6, 0o147);
    std::fs::write(dir.path().join("p.parquet"), bytes).unwrap();
    let said = refusal(dir.path(), &["data", "inspect", "p.parquet"]);
    assert_eq!(said, "bidpo: p.parquet: not a Parquet file that can be read: it is damaged\n");
}

#[test]
fn names_in_a_results_file_steer_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let results = std::fs::read_to_string("tests/data/results_0_1_0.jsonl").unwrap();
    let name = "v\u{1b}]0;title\u{7}\u{202e}\u{9b}2J.gguf";
    let marked = results.replace("\"v.gguf\"", &serde_json::Value::from(name).to_string());
    assert_ne!(marked, results);
    std::fs::write(dir.path().join("r.jsonl"), marked).unwrap();
    for args in
        [&["report", "r.jsonl"][..], &["report", "--json", "r.jsonl"], &["report", "--html", "r.html", "r.jsonl"]]
    {
        let output = tiny::bidpo().current_dir(dir.path()).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for text in [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()) {
            let obeyed = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
            assert!(!text.contains(obeyed), "{args:?}: {text:?}");
            if args.contains(&"--json") && !text.is_empty() {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(value[0]["manifest"]["conditions"][1]["vectors"][0]["file"], name);
            }
        }
    }
}

#[test]
fn a_prompt_on_stdin_has_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let mut command = tiny::bidpo();
    command.args(["generate", "-n", "1", "--prompt", "-", "-m"]).arg(&model);
    command.stdin(std::fs::File::open("/dev/zero").unwrap());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("more than 67108864 bytes"), "{said}");
}
