//! Model files that llama.cpp throws, asserts or crashes on: one sentence about the file, exit code 1, and a server that stays.

use crate::server::Server;
use crate::tiny;
use ggml_grad::llama::{DType, GgufFile, GgufValue, GgufWriter};
use serde_json::json;
use std::path::{Path, PathBuf};

/// What a copy of a model has otherwise.
#[derive(Default)]
struct Change<'a> {
    /// Metadata to set, with GGUF's u32 for integers.
    set: &'a [(&'a str, GgufValue)],
    /// A tensor to write as another type, with zeros.
    retype: Option<(&'a str, DType)>,
    /// Another vocabulary: texts and kinds.
    vocabulary: Option<(Vec<String>, Vec<i32>)>,
}

fn copy(model: &Path, name: &str, change: &Change<'_>) -> PathBuf {
    let file = GgufFile::open(model).unwrap();
    let out = model.with_file_name(name);
    let mut writer = GgufWriter::with_meta_of(model).unwrap();
    for (key, value) in change.set {
        writer.remove(key);
        match value {
            GgufValue::Int(n) => writer.set_u32(key, *n as u32).unwrap(),
            GgufValue::Float(x) => writer.set_f32(key, *x as f32).unwrap(),
            GgufValue::Str(text) => writer.set_text(key, text).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    if let Some((texts, kinds)) = &change.vocabulary {
        writer.set_texts("tokenizer.ggml.tokens", texts).unwrap();
        writer.set_i32s("tokenizer.ggml.token_type", kinds).unwrap();
    }
    let tensors: Vec<(String, DType, [usize; 4])> = file.tensors().map(|(n, d, ne)| (n.to_owned(), d, ne)).collect();
    let mut datas: Vec<Vec<u8>> = Vec::new();
    for (tensor, dtype, ne) in &tensors {
        let other = change.retype.filter(|(name, _)| name == tensor).map(|(_, d)| d);
        let mut bytes = Vec::new();
        match other {
            Some(d) => bytes.resize(d.row_bytes(ne[0]) * ne[1..].iter().product::<usize>(), 0),
            None => file.read_pieces(tensor, 1 << 20, &mut |piece| bytes.extend_from_slice(piece)).unwrap(),
        }
        writer.declare(tensor, other.unwrap_or(*dtype), *ne).unwrap();
        datas.push(bytes);
    }
    writer.write_with(&out, &mut |i, sink| sink.push(&datas[i])).unwrap();
    out
}

/// The error of a command on a model: one line, exit code 1.
fn refusal(args: &[&str], model: &Path) -> String {
    let output = tiny::bidpo().args(args).arg("-m").arg(model).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{} {args:?}: {:?} {said}", model.display(), output.status);
    assert!(output.stdout.is_empty(), "{output:?}");
    let last = said.lines().last().unwrap().to_owned();
    assert!(last.contains(model.to_str().unwrap()), "{last}");
    for path in [".cpp:", ".c:", "GGML_ASSERT", "panicked", "/src/"] {
        assert!(!last.contains(path), "{last}");
    }
    last
}

const GENERATE: [&str; 5] = ["generate", "-n", "1", "--prompt", "tea"];

#[test]
fn types_that_ggml_cannot_multiply_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let out = dir.path().join("out.gguf");
    let train = ["train", "--data", "misconceptions", "--steps", "1", "--layer", "2", "-o", out.to_str().unwrap()];
    for (tensor, dtype, word) in [
        ("token_embd.weight", DType::I32, "i32"),
        ("blk.1.attn_q.weight", DType::I32, "i32"),
        ("blk.2.ffn_down.weight", DType::I64, "i64"),
        ("output.weight", DType::I64, "i64"),
        ("blk.0.attn_norm.weight", DType::F16, "f16"),
    ] {
        let file = copy(&model, "typed.gguf", &Change { retype: Some((tensor, dtype)), ..Change::default() });
        for command in [&GENERATE[..], &["check"], &["serve", "--port", "0"], &train] {
            let said = refusal(command, &file);
            assert!(said.contains(tensor) && said.contains(word), "{said}");
        }
    }
}

#[test]
fn sizes_that_llama_cpp_asserts_on_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let int = GgufValue::Int;
    for (key, value, words) in [
        ("llama.block_count", int(0), "block_count is 0: llama.cpp takes 1 to 512"),
        ("llama.block_count", int(65536), "block_count is 65536"),
        ("llama.block_count", int(600), "block_count is 600"),
        ("llama.block_count", int(5), "blk.4"),
        ("llama.expert_used_count", int(3), "expert_used_count is 3: llama.cpp takes 0 to 0"),
        ("llama.attention.layer_norm_rms_epsilon", GgufValue::Float(-1.0), "epsilon is -1"),
        ("llama.attention.layer_norm_rms_epsilon", GgufValue::Float(f64::NAN), "epsilon is NaN"),
        ("llama.rope.scaling.type", GgufValue::Str("spiral".into()), "\"spiral\": llama.cpp knows none, linear"),
        ("llama.attention.head_count", int(0), ""),
        ("llama.attention.head_count", int(3), ""),
        ("llama.attention.head_count_kv", int(7), ""),
        ("llama.rope.dimension_count", int(7), ""),
        ("llama.embedding_length", int(0), "embedding_length is 0"),
        ("llama.context_length", int(0), "context_length is 0"),
        ("tokenizer.ggml.model", GgufValue::Str("bert".into()), ""),
        ("tokenizer.ggml.model", GgufValue::Str("abacus".into()), ""),
        ("general.architecture", GgufValue::Str("abacus".into()), "abacus"),
    ] {
        let file = copy(&model, "sized.gguf", &Change { set: &[(key, value.clone())], ..Change::default() });
        let said = refusal(&GENERATE, &file);
        assert!(said.contains(words), "{key} {value:?}: {said}");
    }
    let (mut texts, kinds) = vocabulary();
    texts[280] = texts[270].clone();
    let file = copy(&model, "twice.gguf", &Change { vocabulary: Some((texts, kinds)), ..Change::default() });
    let said = refusal(&GENERATE, &file);
    assert!(said.contains("twice, as token 270 and as token 280"), "{said}");
}

/// A vocabulary of words, with its byte tokens.
fn vocabulary() -> (Vec<String>, Vec<i32>) {
    let mut texts: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    texts.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    let mut kinds = [vec![2, 3, 3], vec![6; 256]].concat();
    for c in "\u{2581}abcdefghijklmnopqrstuvwxyz".chars().map(String::from).chain((0..).map(|i| format!("word{i}"))) {
        if texts.len() == tiny::VOCABULARY {
            break;
        }
        texts.push(c);
        kinds.push(1);
    }
    (texts, kinds)
}

#[test]
fn a_text_without_tokens_is_an_error_and_the_server_stays() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let (mut texts, mut kinds) = vocabulary();
    for at in 3..259 {
        texts[at] = format!("piece{at}");
        kinds[at] = 1;
    }
    let file = copy(&model, "bytes.gguf", &Change { vocabulary: Some((texts, kinds)), ..Change::default() });
    for text in ["caf\u{e9}", "\u{65e5}", "A"] {
        let said = refusal(&["generate", "-n", "1", "--prompt", text], &file);
        assert!(said.contains(&format!("no token for {:?}", text.chars().last().unwrap())), "{said}");
    }
    let server = Server::start(&file, &["--slots", "1"]);
    let before = server.complete("tea is", &json!({}));
    assert_eq!(before.0, 200, "{}", before.1);
    for text in ["caf\u{e9}", "A", "tea \u{1f44b}"] {
        let (status, answer) = server.complete(text, &json!({}));
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("no token for"), "{answer}");
    }
    assert_eq!(server.complete("tea is", &json!({})).1["choices"], before.1["choices"]);
}

#[test]
fn a_model_is_tried_once() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let cache = dir.path().join("cache");
    let marks = || std::fs::read_dir(cache.join("bidpo/probed")).map_or(0, Iterator::count);
    let run = |probe: &str| {
        let mut command = tiny::bidpo();
        command.args(GENERATE).arg("-m").arg(&model).env("XDG_CACHE_HOME", &cache).env("BIDPO_PROBE", probe);
        assert!(command.output().unwrap().status.success());
        marks()
    };
    assert_eq!((run("0"), run("1"), run("1")), (0, 1, 1));
    // Another file under the same name.
    let shape = ggml_grad::synth::family("llama").unwrap().shape();
    ggml_grad::synth::write(&model, ggml_grad::synth::family("llama").unwrap(), &shape, tiny::q8_0(), 8).unwrap();
    assert_eq!(run("1"), 2);
}
