//! Valid inputs: files of the repository's tests, and small ones made here.

use super::{adapters, file, repository, runs};
use bidpo_core::adapter::{AdapterFile, AdapterKind, CONFIG, LowRank, Target, WEIGHTS};
use bidpo_core::check::random_parameters;
use bidpo_core::intervention::{Kind, KindSpec};
use bidpo_core::steer::{RowChanges, SteeringVector};
use ggml_grad::llama::DType;
use ggml_grad::synth::{self, Shape};
use std::path::{Path, PathBuf};

/// The files of a folder of the repository with this ending, in the order of their names.
fn files(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let folder = repository(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    let wanted = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == ending);
    paths.iter().filter(wanted).map(|path| read(path)).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A vector of bidpo's own at one layer and one at two, as files of this ending.
fn own_vectors(ending: &str) -> Vec<Vec<u8>> {
    let numbers = |n: usize| (0..n).map(|i| i as f32 / 8.0 - 1.0).collect::<Vec<f32>>();
    let mut one = SteeringVector::single(2, numbers(32), "llama").expect("a vector");
    one.provenance.set_str("method", "made for a test");
    one.provenance.set_float("beta", 0.1);
    let two = SteeringVector::from_layers(&"2-3".parse().expect("layers"), &numbers(64), "llama").expect("a vector");
    let path = file(&format!("seed.{ending}"), b"");
    // An .npy file does not name its layers: two need `--layers` to be read.
    let vectors = if ending == "npy" { vec![one] } else { vec![one, two] };
    let write = |vector: &SteeringVector| {
        vector.save(&path).expect("a vector can be written");
        read(&path)
    };
    vectors.iter().map(write).collect()
}

/// Vectors, and every kind of change that a file of vectors holds.
pub(super) fn gguf_vectors() -> Vec<Vec<u8>> {
    let path = file("seed_kind.gguf", b"");
    let of = |kind: Kind| {
        let spec = KindSpec { rank: 2, ..kind.into() };
        let theta = random_parameters(&*spec.intervention(1, 32).expect("a kind"), 30.0, 32, 1);
        let scope = "answer".parse().expect("a scope");
        let mut vector =
            SteeringVector { scope, ..SteeringVector::single(3, theta.clone(), "llama").expect("a vector") };
        match kind {
            Kind::Add => drop(vector.directions.insert(3, theta)),
            _ => {
                vector.directions.clear();
                vector.rows = Some(RowChanges { spec, layer: 3, n_embd: 32, theta });
            }
        }
        vector.save(&path).expect("a file can be written");
        read(&path)
    };
    own_vectors("gguf").into_iter().chain(Kind::EACH.into_iter().map(of)).collect()
}

/// An adapter for the models among the seeds.
fn an_adapter() -> AdapterFile {
    let mut adapter = AdapterFile::new("llama", Some(4.0));
    for name in ["blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.1.ffn_down.weight"] {
        let values = |k: f32| (0..64).map(|i| (i as f32 * k).sin() / 8.0).collect::<Vec<f32>>();
        adapter.pairs.insert(Target::of(name), LowRank::new(2, values(0.7), values(1.1)).expect("a pair"));
    }
    adapter.invocation_tokens = vec![5, 9];
    adapter.provenance.set_str("method", "made for a test");
    adapter
}

pub(super) fn adapters() -> Vec<Vec<u8>> {
    let path = file("seed_adapter.gguf", b"");
    let write = |kind| {
        an_adapter().save(&path, kind).expect("an adapter can be written");
        read(&path)
    };
    vec![write(AdapterKind::F32), write(AdapterKind::F16)]
}

/// A file of the folder that PEFT would write.
fn of_peft(name: &str) -> Vec<u8> {
    let path = file(&format!("seed_peft/{name}"), b"");
    an_adapter().save_peft(path.parent().expect("a folder"), &adapters::heads()).expect("a folder can be written");
    read(&path)
}

pub(super) fn peft_weights() -> Vec<Vec<u8>> {
    vec![of_peft(WEIGHTS)]
}

pub(super) fn peft_configs() -> Vec<Vec<u8>> {
    vec![of_peft(CONFIG)]
}

pub(super) fn safetensors_vectors() -> Vec<Vec<u8>> {
    own_vectors("safetensors")
}

pub(super) fn npy_vectors() -> Vec<Vec<u8>> {
    own_vectors("npy")
}

pub(super) fn npz_vectors() -> Vec<Vec<u8>> {
    files("tests/gold/torch", "npz")
}

pub(super) fn torch_vectors() -> Vec<Vec<u8>> {
    files("tests/gold/torch", "pt")
}

pub(super) fn models() -> Vec<Vec<u8>> {
    let family = synth::family("llama").expect("a family");
    let shape = Shape {
        n_layer: 2,
        n_embd: 32,
        n_head: 1,
        n_head_kv: 1,
        head_dim: 32,
        n_ff: 32,
        n_vocab: 300,
        n_ctx: 256,
        ..family.shape()
    };
    let path = file("seed_model.gguf", b"");
    let dtype = DType::from_name("q8_0").expect("a type of weights");
    synth::write(&path, family, &shape, dtype, 7).expect("a model");
    vec![read(&path)]
}

pub(super) fn pairs(ending: &str) -> Vec<Vec<u8>> {
    files("tests/cases/data", ending)
}

pub(super) fn truthfulqa_csv() -> Vec<Vec<u8>> {
    let head = "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source";
    let row = |i: usize| {
        format!("Plain,Trees,\"What is tree {i}?\",A plant,\"A stone, {i}\",A plant; Wood,A stone; Air,none")
    };
    vec![format!("{head}\n{}\n{}\n", row(1), row(2)).into_bytes()]
}

pub(super) fn truthfulqa_json() -> Vec<Vec<u8>> {
    let targets = r#"{"A plant.":1,"A stone.":0,"Air.":0}"#;
    let old = format!(r#"[{{"question":"What is a tree?","mc1_targets":{targets},"mc2_targets":{targets}}}]"#);
    let lists = r#"{"choices":["A plant.","A stone."],"labels":[1,0]}"#;
    let hub = format!(r#"[{{"question":"What is a tree?","mc1_targets":{lists},"mc2_targets":{lists}}}]"#);
    vec![old.into_bytes(), hub.into_bytes()]
}

pub(super) fn choices() -> Vec<Vec<u8>> {
    let rows = [
        r#"{"question":"Q","choices":{"text":["x","y"],"label":["A","B"]},"answerKey":"B"}"#,
        r#"{"input":"Q","target_scores":{"x":1,"y":0,"z":0}}"#,
        r#"{"passage":"P.","question":"q","answer":true}"#,
        r#"{"ctx":"C","endings":["x","y","z"],"label":"2"}"#,
        r#"{"goal":"G","sol1":"x","sol2":"y","label":1}"#,
        r#"{"sentence":"S _","option1":"x","option2":"y","answer":"1"}"#,
    ];
    rows.iter().map(|row| format!("{row}\n{row}\n").into_bytes()).collect()
}

pub(super) fn mmlu() -> Vec<Vec<u8>> {
    vec![
        b"\"One, and one?\",2,3,4,5,A\nTwo?,1,2,3,4,1\n".to_vec(),
        b"question,A,B,C,D,answer\nOne?,1,2,3,4,D\n".to_vec(),
    ]
}

pub(super) fn mappings() -> Vec<Vec<u8>> {
    files("data/mappings", "json")
}

pub(super) fn prompts() -> Vec<Vec<u8>> {
    let chat = r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]}"#;
    vec![
        format!("\"What is tea?\"\n{{\"prompt\":\"And coffee?\"}}\n{chat}\n").into_bytes(),
        b"id,question\n1,\"What, then?\"\n2,Why?\n".to_vec(),
    ]
}

pub(super) fn results() -> Vec<Vec<u8>> {
    vec![read(&repository("tests/data/results_0_1_0.jsonl"))]
}

pub(super) fn splits() -> Vec<Vec<u8>> {
    let split = br#"{"bidpo_split":1,"data":"q.csv","data_sha256":"ab","items":5,"seed":0,"groups":[[0,3]],"train":[0,3],"valid":[1],"test":[2,4]}"#;
    vec![split.to_vec()]
}

pub(super) fn checkpoints() -> Vec<Vec<u8>> {
    vec![runs::a_checkpoint()]
}

pub(super) fn captures() -> Vec<Vec<u8>> {
    vec![runs::a_capture()]
}

pub(super) fn gold() -> Vec<Vec<u8>> {
    vec![read(&repository("tests/gold/smol_il15_v0_Dp1.json"))]
}

pub(super) fn templates() -> Vec<Vec<u8>> {
    let plain = "{% for m in messages %}{% if loop.index0 < 3 %}<{{ m['role'] }}>{{ m['content'] | trim }}\n{% endif %}\
        {% endfor %}{{ 'x' * 2 }}{{ [1, 2] | batch(2) | list }}{% if add_generation_prompt %}<assistant>{% endif %}";
    let rich = "{%- set ns = namespace(n=0, text='') -%}{%- macro turn(m) -%}[{{ m.role | upper }}] {{ m.content }}{%- endmacro -%}\
        {% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ turn(m) }}{{ ns.n }}\
        {% if m.tool_calls is defined %}{{ m.tool_calls | tojson(indent=2) }}{% endif %}{% else %}none{% endfor %}\
        {{ strftime_now('%d %b %Y') }}{{ messages[0].content.split(' ')[-1] }}{{ '%s-%d' | format('a', 3) }}\
        {{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}\
        {%- if messages | length > 99 %}{{ raise_exception('too many') }}{% endif %}";
    vec![plain.as_bytes().to_vec(), rich.as_bytes().to_vec()]
}

pub(super) fn chat_lines() -> Vec<Vec<u8>> {
    let lines = [
        "/scale 1.5",
        "/load v.gguf:2 \"a b\"",
        "/set temperature 0.5",
        "/system Be brief.",
        "/layers",
        "tell me \\\nof tea",
        "\"\"\"\nseveral\nlines\n\"\"\"",
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// A folder with a vector, a gate and an adapter for the models among the seeds: `v`, `g`, `a`.
pub(super) fn folder_of_vectors() -> PathBuf {
    let mut vector = SteeringVector::single(1, vec![0.1; 32], "llama").expect("a vector");
    vector.provenance.set_float("residual_norm_median", 3.0);
    let path = file("vectors/v.gguf", b"");
    vector.save(&path).expect("a vector can be written");
    let spec = KindSpec::from(Kind::Gate);
    let theta = random_parameters(&*spec.intervention(1, 32).expect("a kind"), 3.0, 32, 1);
    vector.rows = Some(RowChanges { spec, layer: 1, n_embd: 32, theta });
    vector.directions.clear();
    vector.save(&path.with_file_name("g.gguf")).expect("a vector can be written");
    an_adapter().save(&path.with_file_name("a.gguf"), AdapterKind::F32).expect("an adapter can be written");
    path.parent().expect("a folder").to_owned()
}

/// Grammars.
pub(super) fn grammars() -> Vec<Vec<u8>> {
    [
        "root ::= object\nobject ::= \"{\" (pair (\",\" pair)*)? \"}\"\npair ::= \"\\\"\" [^\\\\\"\\x00-\\x1F]* \"\\\"\" \":\" (object | [0-9]{1,9})\n",
        "root ::= ((\"a\"? [b-d]){0,20} | .{2,} \"\\u00e9\"+)? # end",
        "root ::= a\r\na ::= b | c\nb ::= \"x\" root \"y\"\nc ::= (\n  \"z\" | )\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Requests.
pub(super) fn requests() -> Vec<Vec<u8>> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").into_bytes();
    let post = |path: &str, body: &str| {
        let head = "host: localhost\r\ncontent-type: application/json\r\nconnection: close";
        format!("POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let chat = r#"{"messages":[{"role":"user","content":"tea"}],"max_tokens":2,"top_p":0.9,"seed":3,"steering":[],"stream":true}"#;
    let tools = r#"{"messages":[{"role":"user","content":"tea"}],"max_tokens":2,"response_format":{"type":"json_schema","json_schema":{"name":"t","schema":{"type":"object","properties":{"a":{"type":"integer"}}}}}}"#;
    vec![
        get("/health"),
        get("/v1/models/tiny"),
        get("/metrics"),
        get("/"),
        post(
            "/v1/completions",
            r#"{"prompt":"tea is","temperature":0.7,"max_tokens":2,"stop":["x"],"logit_bias":{"5":-1},"logprobs":2}"#,
        ),
        post("/v1/chat/completions", chat),
        post("/v1/chat/completions", tools),
        post("/v1/completions", r#"{"prompt":"tea","max_tokens":3,"guided_regex":"^(a|b?c{1,3})+[^d-f\\w]$"}"#),
        post("/completion", r#"{"prompt":"tea","n_predict":3,"grammar":"root ::= [a-z]{1,3} (\"x\" | root)?"}"#),
        get("/slots"),
        post("/v1/score", r#"{"messages":[{"role":"user","content":"tea"}],"answer":" hot"}"#),
        post("/tokenize", r#"{"content":"tea","add_special":true}"#),
        post("/detokenize", r#"{"tokens":[5,6,7]}"#),
        post("/apply-template", r#"{"messages":[{"role":"user","content":"tea"}]}"#),
        post(
            "/api/chat",
            r#"{"model":"tiny","messages":[{"role":"user","content":"tea"}],"options":{"num_predict":2},"stream":false}"#,
        ),
        post("/v1/vectors", r#"{"action":"load","vector":"v"}"#),
        post(
            "/v1/completions",
            r#"{"prompt":"tea is","max_tokens":3,"steering":[{"vector":"v","scale":0.5,"layers":"1"},{"vector":"g","scale":"20%","layers":[1,1]}],"scope":"first:2+answer"}"#,
        ),
        post(
            "/v1/completions",
            r#"{"model":"tiny@v:0.5","prompt":"tea","max_tokens":3,"lora":[{"id":0,"scale":0.5}],"logprobs":1}"#,
        ),
        post(
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"tea"}],"max_tokens":3,"steering":[{"vector":"a","scale":-1},{"vector":"v"}]}"#,
        ),
        post("/api/generate", r#"{"model":"tiny","prompt":"tea","options":{"num_predict":2,"temperature":0}}"#),
    ]
}
