//! Vectors with gates: how far they opened is told beside the tokens, as the residual stream says, streamed or not.

use crate::common;
use crate::server::{DIAL, Server, ask, command_with, vectors, with};
use bidpo_core::intervention::{Kind, KindSpec, Scope};
use bidpo_core::steer::{RowChanges, SteeringVector};
use ggml_grad::llama::{Batch, Context, ContextParams, EvalCallback, Model, ModelParams, Node, Token};
use serde_json::{Value, json};
use std::path::Path;

const CHAT: &str = "/v1/chat/completions";
const LAYER: usize = 15;
const N_EMBD: usize = 576;
const BIAS: f32 = 0.25;
/// Median norm of the residual stream there.
const RESIDUAL: f64 = 170.0;

/// A number from -1 to 1 that depends on `i`.
fn noise(i: usize) -> f32 {
    (i as f32 * 12.9898).sin()
}

/// Weights of a gate that opens here and shuts there.
fn weight() -> Vec<f32> {
    (0..N_EMBD).map(|i| 0.12 * noise(i)).collect()
}

/// A file with a gate, of the small model's form.
fn gated(kind: Kind, scope: &str) -> SteeringVector {
    let v = (0..N_EMBD).map(|i| noise(i + 7000));
    let theta: Vec<f32> = weight().into_iter().chain([BIAS]).chain(v).collect();
    let mut vector = SteeringVector::single(LAYER, vec![1.0; N_EMBD], "llama").unwrap();
    vector.directions.clear();
    vector.rows = Some(RowChanges { spec: KindSpec::from(kind), layer: LAYER, n_embd: N_EMBD, theta });
    vector.scope = scope.parse::<Scope>().unwrap();
    vector.provenance.set_float("residual_norm_median", RESIDUAL);
    vector.check().unwrap();
    vector
}

/// Fills a folder with a shipped vector and gated ones: `topic` for each token, `held` by the prompt, `late` in the answer only.
pub fn fill(folder: &Path) {
    for name in [DIAL, "misconceptions"] {
        let file = format!("{name}.{}", common::SMOL);
        std::fs::copy(vectors().join(&file), folder.join(&file)).unwrap();
    }
    gated(Kind::Gate, "all").save(&folder.join("topic.gguf")).unwrap();
    gated(Kind::PromptGate, "all").save(&folder.join("held.gguf")).unwrap();
    gated(Kind::LinearGate, "after:2").save(&folder.join("late.gguf")).unwrap();
}

/// A server with those vectors, which lie in `folder`.
pub fn start(folder: &Path, args: &[&str]) -> Option<Server> {
    fill(folder);
    Server::spawn(command_with(&common::model(common::SMOL)?, folder).args(args))
}

/// The output of one block, row by row.
struct Rows(Vec<f32>);

impl EvalCallback for Rows {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        node.block_output() == Some(LAYER) && node.is_computed()
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        self.0.extend(node.f32s().iter());
        true
    }
}

/// w . n(h) + b at each position of some tokens, h from llama.cpp's own graph. A vector at the same layer does not change h.
fn arguments(tokens: &[Token], n_prompt: usize) -> Vec<f64> {
    let path = common::model(common::SMOL).unwrap();
    let model = Model::load(&path, &ModelParams { plain_weights: true, ..ModelParams::default() }).unwrap();
    let params = ContextParams {
        n_ctx: 256,
        n_batch: 64,
        n_seq_max: 1,
        n_threads: 1,
        flash_attention: false,
        shared_cache: false,
        ..ContextParams::default()
    };
    let mut ctx = Context::new(&model, &params).unwrap();
    ctx.set_kernel_override(ggml_grad::graph::FastKernels::if_supported());
    let mut rows = Rows(Vec::new());
    // As the server computes them: the prompt at once, the answer token by token.
    for range in std::iter::once(0..n_prompt).chain((n_prompt..tokens.len()).map(|at| at..at + 1)) {
        let mut batch = Batch::new();
        range.for_each(|at| _ = batch.add(tokens[at], at, &[0], true));
        ctx.decode_with_callback(&batch, &mut rows).unwrap();
    }
    let z = |h: &[f32]| {
        let rms = (h.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / N_EMBD as f64).sqrt();
        h.iter().zip(weight()).map(|(x, w)| f64::from(*x) * f64::from(w)).sum::<f64>() / rms + f64::from(BIAS)
    };
    rows.0.chunks_exact(N_EMBD).map(z).collect()
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// The openings of gate number `i` of a request at each token.
fn open(tokens: &Value, i: usize) -> Vec<Option<f64>> {
    tokens.as_array().unwrap().iter().map(|t| t["gates"][i]["open"].as_f64()).collect()
}

fn ids(tokens: &Value) -> Vec<Token> {
    tokens.as_array().unwrap().iter().map(|t| t["id"].as_i64().unwrap() as Token).collect()
}

#[test]
fn openings_are_told_beside_the_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = start(dir.path(), &["--ctx", "512"]) else { return };
    let kinds: Value = serde_json::from_str(&server.get("/v1/vectors").1).unwrap();
    let of = |name: &str| {
        let found = kinds["data"].as_array().unwrap().iter().find(|v| v["id"] == name).unwrap();
        (found["kind"].as_str().unwrap().to_owned(), found["scope"].as_str().unwrap().to_owned())
    };
    assert_eq!(of("late"), ("linear-gate".into(), "after:2".into()));
    assert_eq!((of(DIAL).0.as_str(), of("topic").0.as_str()), ("add", "gate"));

    let question = json!({"messages": [{"role": "user", "content": "How do I make a cup of tea?"}]});
    let prompt = server.ok("/tokenize", &question)["tokens"].as_array().unwrap().clone();
    let prompt: Vec<Token> = prompt.iter().map(|t| t.as_i64().unwrap() as Token).collect();
    let n = prompt.len();
    let steering = json!([{"vector": DIAL, "scale": 0.2}, {"vector": "topic"}, {"vector": "held", "scale": 0.1},
        {"vector": "late", "scale": 0.1}]);
    let body = with(ask("How do I make a cup of tea?", 12), json!({"logprobs": true, "steering": steering}));
    let answer = server.ok(CHAT, &body);
    assert_eq!(answer["usage"]["prompt_tokens"], n, "{answer}");
    let tokens = &answer["choices"][0]["logprobs"]["content"];
    let all = [prompt.clone(), ids(tokens)].concat();
    let z = arguments(&all, n);
    // A token is predicted from the position before it. The scopes are those of the files.
    let same = |got: Option<f64>, want: f64| (got.unwrap() - want).abs() < 1e-4;
    for k in 0..12 {
        let at = n - 1 + k;
        let gates = &tokens[k]["gates"];
        let names: Vec<&str> = gates.as_array().unwrap().iter().map(|g| g["vector"].as_str().unwrap()).collect();
        assert_eq!(names, ["topic", "held", "late"]);
        assert!(same(open(tokens, 0)[k], sigmoid(z[at])), "{k}: {gates} {}", sigmoid(z[at]));
        assert!(same(open(tokens, 1)[k], sigmoid(z[n - 1])), "{k}: {gates}");
        match open(tokens, 2)[k] {
            None => assert!(k < 2, "{k}"),
            linear => assert!(k >= 2 && same(linear, z[at]), "{k}: {gates} {}", z[at]),
        }
    }
    let opened: Vec<f64> = open(tokens, 0).into_iter().flatten().collect();
    let (least, most) =
        (opened.iter().fold(1.0, |a: f64, b| a.min(*b)), opened.iter().fold(0.0, |a: f64, b| a.max(*b)));
    assert!(most - least > 0.1, "the gate tells no tokens apart: {opened:?}");

    // The same in a stream, without the other vectors, in completions, and in scores.
    let parts = server.stream(CHAT, &with(body.clone(), json!({"stream": true})));
    let streamed = parts.iter().filter_map(|p| p["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(&Value::from(streamed.cloned().collect::<Vec<_>>()), tokens);
    let unsteered = server.ok(CHAT, &with(body.clone(), json!({"steering": []})));
    assert!(unsteered["choices"][0]["logprobs"]["content"][0].get("gates").is_none(), "{unsteered}");
    let silent = server.ok(CHAT, &with(body.clone(), json!({"logprobs": false})));
    assert_eq!(silent["choices"][0]["message"], answer["choices"][0]["message"]);
    // Other pieces of the same tokens are rounded in another way by quantized kernels.
    let near = |got: Option<f64>, want: f64| (got.unwrap() - want).abs() < 0.15;
    let score = with(question, json!({"tokens": ids(tokens), "steering": steering}));
    let scored = server.ok("/v1/score", &score);
    for i in 0..3 {
        for (k, (told, scored)) in open(tokens, i).into_iter().zip(open(&scored["tokens"], i)).enumerate() {
            assert_eq!(told.is_some(), scored.is_some());
            assert!(told.is_none() || near(scored, told.unwrap()), "gate {i}, token {k}: {told:?} {scored:?}");
        }
    }
    let echo = json!({"prompt": all, "max_tokens": 1, "temperature": 0, "logprobs": 0, "echo": true,
        "steering": [{"vector": "topic"}, {"vector": "late"}], "scope": "all"});
    let echoed = server.ok("/v1/completions", &echo);
    let gates = echoed["choices"][0]["logprobs"]["gates"].as_array().unwrap();
    assert_eq!((gates.len(), &gates[0]), (all.len() + 1, &json!([])));
    for (at, z) in z.iter().enumerate() {
        assert!(near(gates[at + 1][0]["open"].as_f64(), sigmoid(*z)), "{at}: {}", gates[at + 1]);
        assert!(gates[at + 1][1]["open"].is_null(), "{at}: {}", gates[at + 1]);
    }
    // A scope of the request limits a gate that knows no prompt.
    let body = with(body, json!({"steering": [{"vector": "topic"}], "scope": "prompt"}));
    let limited = server.ok(CHAT, &body);
    assert_eq!(open(&limited["choices"][0]["logprobs"]["content"], 0), [None; 12]);
}
