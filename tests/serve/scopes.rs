//! The scope of a request: the rows that are steered are those of the command's `--scope`.

use crate::server::{Server, ask, command_with, with};
use bidpo_core::intervention::Scope;
use bidpo_core::steer::{ControlVector, ScaledVector, SteeringVector, combine, decode_steered};
use ggml_grad::graph::log_sum_exp;
use ggml_grad::llama::{Batch, Context, ContextParams, DType, Model, ModelParams, Token};
use ggml_grad::synth;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const CHAT: &str = "/v1/chat/completions";
const LAYER: usize = 1;
/// Opens a thought in front of each answer.
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}[assistant] <think>\n{% endif %}{# </think> #}";
/// The one answer that the requests' grammar allows.
const ANSWER: &str = "red so</think> a plum <think>or</think> tin";

/// ggml sums a row in other orders alone and among others.
const ROUNDING: f64 = 1e-3;

/// A random model, its template, and two vectors: one that acts at every row, one in thoughts only.
fn fill(folder: &Path) -> Arc<Model> {
    let path = folder.join("m.gguf");
    let family = synth::family("llama").unwrap();
    synth::write(&path, family, &family.shape(), DType::F32, 1).unwrap();
    std::fs::write(folder.join("think.jinja"), TEMPLATE).unwrap();
    std::fs::write(folder.join("plain.jinja"), TEMPLATE.replace("think>", "muse>")).unwrap();
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let direction = (0..model.n_embd()).map(|i| 8.0 * (i as f32 * 12.9898).sin()).collect();
    let mut vector = SteeringVector::single(LAYER, direction, "llama").unwrap();
    vector.save(&folder.join("all.gguf")).unwrap();
    vector.scope = "think".parse::<Scope>().unwrap();
    vector.save(&folder.join("thinks.gguf")).unwrap();
    model
}

/// Log-probabilities of an answer's tokens by llama.cpp, with the vector added to the rows that `covered` holds.
fn by_hand(model: &Arc<Model>, folder: &Path, tokens: &[Token], n_prompt: usize, covered: &[bool]) -> Vec<f64> {
    let vector = Arc::new(SteeringVector::load(&folder.join("all.gguf")).unwrap());
    let dial = ScaledVector { name: String::new(), vector, scale: 1.0 };
    let vector: ControlVector = combine(&[dial], None, model).unwrap().unwrap();
    let mut ctx = Context::new(model, &ContextParams::exact(256, 1, 1)).unwrap();
    let mut batch = Batch::new();
    for (at, &token) in tokens.iter().enumerate() {
        batch.add(token, at, &[0], true);
    }
    let rows: Vec<Option<&ControlVector>> = covered.iter().map(|&c| c.then_some(&vector)).collect();
    decode_steered(&mut ctx, &batch, &rows).unwrap();
    let one = |at: usize| {
        let logits = ctx.logits(at - 1).unwrap();
        f64::from(logits[tokens[at] as usize]) - log_sum_exp(logits)
    };
    (n_prompt..tokens.len()).map(one).collect()
}

fn ids(list: &Value) -> Vec<Token> {
    list.as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as Token).collect()
}

#[test]
fn a_request_takes_the_scopes_of_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let model = fill(folder);
    let serve = |template: &str| {
        let mut command = command_with(&folder.join("m.gguf"), folder);
        Server::spawn(command.args(["--ctx", "256", "--template"]).arg(folder.join(template))).unwrap()
    };
    let server = serve("think.jinja");
    let question = "what is it? ".repeat(8);
    let chat = json!({"messages": [{"role": "user", "content": question}]});
    let prompt = ids(&server.ok("/tokenize", &chat)["tokens"]);
    let n = prompt.len();
    let form = json!({"grammar": format!("root ::= {ANSWER:?}"), "logprobs": true, "reasoning_format": "none"});
    let body = with(ask(&question, 100), form);
    let mut seen: Vec<Vec<f64>> = Vec::new();
    for (vector, scope) in [
        ("all", json!("think")),
        ("all", json!("not-think")),
        ("all", json!("first:3+after:2")),
        ("all", json!("last:2")),
        ("all", json!("prompt+not-think")),
        ("all", json!("answer")),
        ("all", json!("prompt")),
        ("all", json!("all")),
        // The file's own scope, and another one in its place.
        ("thinks", json!(null)),
        ("thinks", json!("all")),
        ("thinks", json!("answer")),
        ("thinks", json!("after:2")),
    ] {
        let steered = json!({"steering": [{"vector": vector}], "scope": scope});
        let answer = server.ok(CHAT, &with(body.clone(), steered.clone()));
        assert_eq!(answer["choices"][0]["message"]["content"], ANSWER);
        let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
        let told: Vec<(Token, f64)> =
            told.iter().map(|t| (t["id"].as_i64().unwrap() as Token, t["logprob"].as_f64().unwrap())).collect();
        let tokens = [prompt.clone(), told.iter().map(|t| t.0).collect()].concat();
        // Thoughts are found in the text here, not token by token.
        let inside = |at: usize| {
            let text = model.detokenize(&tokens[..=at], true);
            text.rfind("<think>").is_some_and(|open| !text[open..].contains("</think>"))
        };
        let answers = |at: usize| at + 1 >= n;
        let covers = |at: usize| match scope.as_str() {
            Some("all") | None if vector == "thinks" => answers(at) && inside(at),
            Some("think") => answers(at) && inside(at),
            Some("not-think") => answers(at) && !inside(at),
            Some("first:3+after:2") => at < 3 || at + 1 >= n + 2,
            Some("last:2") => at < n && at + 2 >= n,
            Some("prompt+not-think") => !answers(at) || !inside(at),
            Some("answer") => answers(at),
            Some("prompt") => !answers(at),
            Some("after:2") => at + 1 >= n + 2,
            _ => true,
        };
        let covered: Vec<bool> = (0..tokens.len()).map(covers).collect();
        assert!(covered.iter().any(|c| *c), "{scope}");
        let want = by_hand(&model, folder, &tokens, n, &covered);
        for (k, (got, want)) in told.iter().map(|t| t.1).zip(&want).enumerate() {
            assert!((got - want).abs() < ROUNDING, "{vector} {scope}, token {k}: {got} for {want}");
        }
        let score = with(with(chat.clone(), steered), json!({"tokens": tokens[n..]}));
        let scored = server.ok("/v1/score", &score);
        for (scored, want) in scored["tokens"].as_array().unwrap().iter().zip(&want) {
            let near = (scored["logprob"].as_f64().unwrap() - want).abs() < ROUNDING;
            assert!(near, "{vector} {scope}: {scored} for {want}");
        }
        seen.push(want);
    }
    assert_eq!(seen[0], seen[8]);
    let moved = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(seen[..8].windows(2).all(|w| moved(&w[0], &w[1]) > 20.0 * ROUNDING), "the scopes hardly differ");

    for (scope, reason) in [("thinking", "is no scope"), ("first:0", "N at least 1"), ("all+prompt", "is no scope")] {
        let (status, error) = server.post(CHAT, &with(ask("hi", 1), json!({"scope": scope})));
        assert_eq!((status, &error["error"]["param"]), (400, &json!("scope")));
        assert!(error["error"]["message"].as_str().unwrap().contains(reason), "{error}");
    }
    let plain = serve("plain.jinja");
    let thinks = with(ask("hi", 1), json!({"steering": [{"vector": "all"}], "scope": "think"}));
    let (status, error) = plain.post(CHAT, &thinks);
    assert_eq!((status, &error["error"]["param"]), (400, &json!("scope")));
    assert!(error["error"]["message"].as_str().unwrap().contains("marks no thoughts"), "{error}");
}
