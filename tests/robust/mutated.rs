//! Valid files of every kind, changed at random where their structure is: each reader gives a value or an error, soon, and
//! without much memory.

use crate::server::Server;
use crate::tiny;
use bidpo_core::chat::{Command, is_complete, joined, printable};
use bidpo_core::check::Gold;
use bidpo_core::data::mapping::MappingFile;
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::data::{ChatTemplate, Message, PreferenceSet, SplitFile, TemplateChoice};
use bidpo_core::eval::results;
use bidpo_core::layers::Layers;
use bidpo_core::steer::SteeringVector;
use bidpo_core::train::Checkpoint;
use ggml_grad::llama::{GgufFile, Model, ModelParams};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest time of one reading.
const TIME: Duration = Duration::from_secs(10);
/// Most memory, in KiB, that all readings of one kind of file add to the process.
const MEMORY: u64 = 1 << 20;

/// One change of a file. Positions are fractions of its length, in 1 / 2^32.
#[derive(Debug, Clone)]
enum Edit {
    Flip(u32, u8),
    /// A little-endian integer, as lengths and counts are stored.
    Integer(u32, u64),
    /// The next run of digits.
    Digits(u32, &'static str),
    Insert(u32, &'static [u8]),
    Delete(u32, u8),
    Repeat(u32, u8),
    Cut(u32),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<u32>();
    // Half of the positions lie in the first sixteenth, where headers are.
    let at = prop_oneof![at, any::<u32>().prop_map(|at| at >> 4)];
    let integers = prop::sample::select(vec![0, 1, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 60, i64::MAX as u64, u64::MAX]);
    let digits = vec!["0", "-1", "1e999", "1e308", "4294967296", "1000000000000", "18446744073709551616", "NaN", "0.5"];
    let texts: Vec<&'static [u8]> = vec![
        b"\0",
        b"\xff\xfe",
        b"\x1b]0;t\x07",
        b"[[[[[[[[",
        b"{\"",
        b"\"",
        b"\n",
        b"\\ud800",
        b"{{",
        b"{% for a in b %}",
        b"%}",
        b",,,,",
        b"null",
        b"(((((",
        b"/scale 1e999 ",
        b"\xe2\x80\xae",
    ];
    prop_oneof![
        (at.clone(), 0..8u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at.clone(), integers).prop_map(|(at, value)| Edit::Integer(at, value)),
        (at.clone(), prop::sample::select(digits)).prop_map(|(at, text)| Edit::Digits(at, text)),
        (at.clone(), prop::sample::select(texts)).prop_map(|(at, text)| Edit::Insert(at, text)),
        (at.clone(), any::<u8>()).prop_map(|(at, n)| Edit::Delete(at, n)),
        (at.clone(), any::<u8>()).prop_map(|(at, n)| Edit::Repeat(at, n)),
        at.prop_map(Edit::Cut),
    ]
}

fn apply(file: &mut Vec<u8>, edit: &Edit) {
    let place = |at: u32| ((u64::from(at) * file.len() as u64) >> 32) as usize;
    if file.is_empty() {
        return;
    }
    match *edit {
        Edit::Flip(at, bit) => {
            let at = place(at);
            file[at] ^= 1 << bit;
        }
        Edit::Integer(at, value) => {
            let at = place(at) & !3;
            let end = file.len().min(at + 8);
            file[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        Edit::Digits(at, text) => {
            let at = place(at);
            let Some(start) = file[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
            let end = file[start..].iter().position(|b| !b.is_ascii_digit()).map_or(file.len(), |i| start + i);
            file.splice(start..end, text.bytes());
        }
        Edit::Insert(at, text) => {
            let at = place(at);
            file.splice(at..at, text.iter().copied());
        }
        Edit::Delete(at, n) => {
            let at = place(at);
            file.drain(at..file.len().min(at + usize::from(n)));
        }
        Edit::Repeat(at, n) => {
            let at = place(at);
            let part = file[at..file.len().min(at + usize::from(n))].to_vec();
            file.splice(at..at, part);
        }
        Edit::Cut(at) => file.truncate(place(at)),
    }
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Gives `cases` changed forms of a file to its reader, which first accepts the file as it is.
fn mutate(what: &str, seed: &[u8], cases: u32, read: impl Fn(&[u8]) -> bool) {
    assert!(read(seed), "{what}: the unchanged file is refused");
    let before = peak();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let result = runner.run(&prop::collection::vec(edit(), 1..6), |edits| {
        let mut file = seed.to_vec();
        edits.iter().for_each(|edit| apply(&mut file, edit));
        let started = Instant::now();
        read(&file);
        prop_assert!(started.elapsed() < TIME, "{:?}", started.elapsed());
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{what}: {error}"));
    let more = peak().saturating_sub(before);
    assert!(more < MEMORY, "{what}: {more} KiB more");
}

/// The same for a reader of files, with a file name.
fn mutate_file(name: &str, seed: &[u8], cases: u32, read: impl Fn(&Path) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    mutate(name, seed, cases, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    });
}

#[test]
fn vector_and_model_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut vector = SteeringVector::single(2, (0..32).map(|i| i as f32 / 8.0).collect(), "llama").unwrap();
    vector.provenance.set_str("method", "made for a test");
    let layer = Layers::one(3);
    for name in ["v.gguf", "v.safetensors", "v.npy"] {
        let path = dir.path().join(name);
        vector.save(&path).unwrap();
        mutate_file(name, &std::fs::read(&path).unwrap(), 300, |path| {
            SteeringVector::open(path, Some(&layer)).or_else(|_| SteeringVector::open(path, None)).is_ok()
        });
    }
    let model = std::fs::read(tiny::model(dir.path(), tiny::q8_0())).unwrap();
    mutate_file("m.gguf", &model, 100, |path| GgufFile::open(path).is_ok());
}

#[test]
fn files_of_pairs_and_questions() {
    let row =
        |i: usize| format!("{{\"prompt\":\"what is {i}\",\"chosen\":\"a number\",\"rejected\":\"a colour {i}\"}}");
    let rows: Vec<String> = (0..6).map(row).collect();
    let load = |path: &Path| PreferenceSet::load(path).is_ok();
    mutate_file("p.jsonl", rows.join("\n").as_bytes(), 200, load);
    mutate_file("p.json", format!("[{}]", rows.join(",")).as_bytes(), 200, load);
    mutate_file("p.csv", b"prompt,chosen,rejected\n\"what, then\",\"this \"\"one\"\"\",that\nwho,you,me\n", 200, load);
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("q.csv");
    crate::common::truthfulqa_csv(&csv, (0..4).map(|i| ["Trees", "q", "r", "w"].map(|t| format!("{t} {i}"))));
    mutate_file("q.csv", &std::fs::read(csv).unwrap(), 200, |path| TruthfulQa::load(path).is_ok());
    let mapping = std::fs::read("data/mappings/arc.json").unwrap();
    mutate_file("mapping.json", &mapping, 200, |path| MappingFile::open(path).is_ok());
}

#[test]
fn files_of_runs() {
    let results = std::fs::read("tests/data/results_0_1_0.jsonl").unwrap();
    mutate_file("r.jsonl", &results, 150, |path| results::read(path).is_ok());
    let split = br#"{"bidpo_split":1,"data":"q.csv","data_sha256":"ab","items":5,"seed":0,"groups":[[0,3]],
        "train":[0,3],"valid":[1],"test":[2,4]}"#;
    mutate_file("s.json", split, 300, |path| SplitFile::load(path, "ab").is_ok());
    let gold = std::fs::read("tests/gold/smol_il15_v0_Dp1.json").unwrap();
    mutate_file("gold.json", &gold, 100, |path| Gold::load(path).is_ok());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let numbers = || vec![0.5; 4];
    let checkpoint =
        Checkpoint { v: numbers(), m: numbers(), s: numbers(), best: numbers(), good: numbers(), ..Default::default() };
    checkpoint.save(&path).unwrap();
    mutate_file("v.ckpt", &std::fs::read(&path).unwrap(), 300, |path| Checkpoint::identity(path).is_ok());
}

#[test]
fn templates_and_chat_lines() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::load(&tiny::model(dir.path(), tiny::q8_0()), &ModelParams::default()).unwrap();
    let template =
        b"{% for m in messages %}{% if loop.index0 < 3 %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endif %}\
        {% endfor %}{{ 'x' * 2 }}{{ [1, 2] | batch(2) | list }}{% if add_generation_prompt %}<assistant>{% endif %}";
    mutate_file("t.jinja", template, 100, |path| {
        ChatTemplate::new(&model, &TemplateChoice::File(path.to_owned()))
            .and_then(|template| template.render(&[Message::user("hello")], true))
            .is_ok()
    });
    for line in ["/scale 1.5", "/load v.gguf:2 \"a b\"", "/set temperature 0.5", "tell me \\\nof tea"] {
        mutate(line, line.as_bytes(), 100, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = Command::parse(&text);
            let shown = printable(&joined(&text));
            is_complete(&text);
            !shown.contains('\u{1b}')
        });
    }
}

#[test]
fn bodies_of_requests() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&tiny::model(dir.path(), tiny::q8_0()), &["--slots", "1"]);
    let status = |path: &str, body: &[u8]| -> u16 {
        let mut stream = TcpStream::connect(&server.addr).unwrap();
        stream.set_read_timeout(Some(TIME)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..]).parse().unwrap()
    };
    for (path, body) in [
        (
            "/v1/completions",
            &br#"{"prompt":"tea is","temperature":0.7,"max_tokens":2,"stop":["x"],"logit_bias":{"5":-1}}"#[..],
        ),
        (
            "/v1/chat/completions",
            br#"{"messages":[{"role":"user","content":"tea"}],"max_tokens":2,"top_p":0.9,"seed":3,"steering":[]}"#,
        ),
    ] {
        assert_eq!(status(path, body), 200, "{path}");
        mutate(path, body, 150, |body| {
            let status = status(path, body);
            assert!([200, 400].contains(&status), "{status}: {}", String::from_utf8_lossy(body));
            true
        });
    }
}
