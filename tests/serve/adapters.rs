//! LoRA adapters per request: named as vectors are, by llama-server's field, and never in a batch with others.

use crate::common::{self, adapters::any_adapter};
use crate::load::in_company;
use crate::server::{DIAL, Server, ask, command_with, vectors, with};
use serde_json::{Value, json};
use std::path::Path;

const MATRICES: [&str; 3] = ["attn_q", "attn_output", "ffn_down"];

/// A folder with a vector and the adapter `warm`, and beside it the adapter `cool` for the command line.
fn start(dir: &Path, args: &[&str]) -> Option<Server> {
    let model = common::model(common::SMOL)?;
    let folder = dir.join("vectors");
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        let file = format!("{DIAL}.{}", common::SMOL);
        std::fs::copy(vectors().join(&file), folder.join(&file)).unwrap();
        any_adapter(&folder, &model, "warm", &MATRICES, 2, 2.0);
        any_adapter(dir, &model, "cool", &MATRICES, 3, 2.0);
    }
    Server::spawn(
        command_with(&model, &folder).arg("--lora").arg(format!("{}:0", dir.join("cool.gguf").display())).args(args),
    )
}

fn request(i: usize) -> Value {
    let model = common::SMOL.trim_end_matches(".gguf");
    let steering = match i % 6 {
        0 => json!({}),
        1 => json!({"steering": [{"vector": "warm", "scale": 1.0}]}),
        2 => json!({"lora": [{"id": 0, "scale": 1.0}]}),
        3 => json!({"steering": [{"vector": "warm", "scale": 0.5}, {"vector": DIAL, "scale": 1.0}]}),
        4 => json!({"model": format!("{model}@warm:-1")}),
        _ => json!({"steering": [{"vector": DIAL, "scale": 1.0}]}),
    };
    let long = "Tell me about a walk in the forest. Begin with the light, then the sounds, then what lies on the ground; do not hurry, \
                and say what you feel at each turn of the path, for a walk is made of its turns and of nothing else.";
    let question = ["What is a violin?", long][i / 6 % 2];
    let body = with(ask(question, 4 + i * 5 % 7), json!({"logprobs": true, "top_logprobs": 1}));
    with(body, steering)
}

#[test]
fn answers_under_adapters_are_those_they_get_alone() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = start(dir.path(), &["--slots", "4"]) else { return };
    let together = in_company(&server, 6, 12, request);
    let Some(alone) = start(dir.path(), &["--slots", "1"]) else { return };
    let mut texts = Vec::new();
    for (i, answer) in together {
        assert_eq!(alone.ok("/v1/chat/completions", &request(i))["choices"], answer, "request {i}: {}", request(i));
        if i < 6 {
            texts.push(answer[0]["logprobs"]["content"][0]["logprob"].to_string());
        }
    }
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 6, "each steering gives other numbers: {texts:?}");
}

#[test]
fn adapters_are_listed_and_dialled_as_vectors_are() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = start(dir.path(), &[]) else { return };
    let json_of = |path: &str| -> Value { serde_json::from_str(&server.get(path).1).unwrap() };
    let listed = json_of("/v1/vectors");
    let warm = listed["data"].as_array().unwrap().iter().find(|v| v["id"] == "warm").unwrap().clone();
    assert_eq!((&warm["kind"], &warm["adapter"]["ranks"]), (&json!("lora"), &json!([2, 2])));
    assert_eq!(warm["layers"].as_array().unwrap().len(), 30);
    let expected = json!([{"id": 0, "path": "cool", "scale": 0.0}, {"id": 1, "path": "warm", "scale": 0.0}]);
    assert_eq!(json_of("/lora-adapters"), expected);
    assert_eq!(json_of("/props")["default_generation_settings"]["params"]["lora"][1], json!({"id": 1, "scale": 0.0}));
    let models = json_of("/v1/models");
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(ids.iter().any(|id| id.ends_with("@warm")) && ids.iter().any(|id| id.ends_with("@cool")), "{ids:?}");

    // The same adapter by each of its names, at scale 0 as without it.
    let first = |fields: Value| {
        let body = with(with(ask("What is a violin?", 3), json!({"logprobs": true})), fields);
        server.ok("/v1/chat/completions", &body)["choices"].clone()
    };
    let model = common::SMOL.trim_end_matches(".gguf");
    let plain = first(json!({}));
    let warm = first(json!({"steering": [{"vector": "warm", "scale": 0.5}]}));
    assert_ne!(plain, warm);
    assert_eq!(first(json!({"lora": [{"id": 1, "scale": 0.5}]})), warm);
    assert_eq!(first(json!({"model": format!("{model}@warm:0.5")})), warm);
    assert_eq!(
        first(json!({"steering": [{"vector": "warm", "scale": 0.25}], "lora": [{"id": 1, "scale": 0.25}]})),
        warm
    );
    assert_eq!(first(json!({"steering": [{"vector": "warm", "scale": 0.0}]})), plain);
    assert_eq!(first(json!({"lora": []})), plain);

    for (fields, said) in [
        (json!({"lora": [{"id": 2, "scale": 1.0}]}), "lora[0].id"),
        (json!({"lora": [{"id": 0}]}), "lora[0].scale"),
        (json!({"lora": [{"id": 0, "scale": 1.0, "path": "x"}]}), "lora[0].path"),
        (json!({"lora": {"id": 0, "scale": 1.0}}), "lora"),
        (json!({"steering": [{"vector": "warm", "scale": "5%"}]}), "plain number"),
        (json!({"steering": [{"vector": "warm", "layers": [1, 2]}]}), "LoRA adapter"),
        (json!({"steering": [{"vector": "warm"}], "scope": "answer"}), "every position"),
    ] {
        let (status, error) = server.post("/v1/chat/completions", &with(ask("Hi", 1), fields.clone()));
        assert!(status == 400 && error.to_string().contains(said), "{fields}: {status} {error}");
    }
    for change in [json!({"action": "unload", "vector": "cool"}), json!({"action": "load", "vector": "cool"})] {
        let (status, error) = server.post("/v1/vectors", &change);
        assert!(status == 400 && error.to_string().contains("--lora"), "{error}");
    }
    assert_eq!(server.ok("/v1/vectors", &json!({"action": "rescan"}))["data"].as_array().unwrap().len(), 3);
    let (status, _) = server.post("/v1/vectors", &json!({"action": "unload", "vector": "warm"}));
    assert_eq!((status, json_of("/lora-adapters").as_array().unwrap().len()), (200, 1));
}

/// llama-server's habit: an adapter of the command line acts unless a request says otherwise.
#[test]
fn an_adapter_of_the_command_line_acts_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let Some(quiet) = start(dir.path(), &[]) else { return };
    let Some(model) = common::model(common::SMOL) else { return };
    let folder = dir.path().join("vectors");
    let Some(acting) = Server::spawn(command_with(&model, &folder).arg("--lora").arg(dir.path().join("cool.gguf")))
    else {
        return;
    };
    let ask = |server: &Server, fields: Value| {
        let body = with(with(ask("What is a violin?", 2), json!({"logprobs": true})), fields);
        server.ok("/v1/chat/completions", &body)["choices"].clone()
    };
    let (plain, cool) = (ask(&quiet, json!({})), ask(&quiet, json!({"lora": [{"id": 0, "scale": 1.0}]})));
    assert_eq!(ask(&acting, json!({})), cool);
    assert_eq!(ask(&acting, json!({"lora": []})), plain);
    assert_eq!(ask(&acting, json!({"steering": [{"vector": "cool", "scale": 0.0}]})), plain);
}
