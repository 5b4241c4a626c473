//! Several seeds on the same traces: each is the run that it would be alone, also after an interruption, and the spread is that of
//! its parts.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::data::{ChatTemplate, PreferenceSet, TemplateChoice};
use bidpo_core::engine::Engine;
use bidpo_core::intervention::Kind;
use bidpo_core::layers::Layers;
use bidpo_core::numbers::cosine;
use bidpo_core::train::{
    CheckpointPlan, Event, NamedPair, RunInputs, SeedRuns, Stop, TrainConfig, Trained, Trainer, TrainingBudget,
    encode_pair, seed_checkpoint,
};
use common::bench::Bench;
use ggml_grad::llama::{Model, ModelParams};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const LAYER: usize = 1;
const FIRST: u64 = 5;

struct Setting {
    model: Arc<Model>,
    pairs: Vec<NamedPair>,
    config: TrainConfig,
}

impl Setting {
    fn new(bench: &Bench, kind: Kind) -> Self {
        let model = Model::load(&bench.model, &ModelParams::default()).unwrap();
        let set = PreferenceSet::open(&bench.path("prefs.jsonl")).unwrap();
        let template = ChatTemplate::new(&model, &TemplateChoice::None).unwrap();
        let pairs = set.pairs.iter().map(|p| encode_pair(p, &model, &template, None).unwrap()).collect();
        let config = TrainConfig {
            kind: kind.into(),
            batch: 2,
            budget: TrainingBudget::Steps(4),
            seed: FIRST,
            checkpoint_every: 1,
            ..TrainConfig::new(Layers::one(LAYER))
        };
        Self { model, pairs, config }
    }

    fn engine(&self) -> Engine {
        let intervention = self.config.kind.intervention(1, self.model.n_embd()).unwrap();
        Engine::new(&self.model, &[LAYER], 64, 1, 1).unwrap().with_intervention(intervention)
    }

    /// One run by itself.
    fn alone(&self, seed: u64) -> Trained {
        let (mut engine, config) = (self.engine(), TrainConfig { seed, ..self.config.clone() });
        let interrupt = AtomicBool::new(false);
        let mut trainer = Trainer { engine: &mut engine, config: &config, checkpoints: None, interrupt: &interrupt };
        trainer.train(&self.pairs[..4], &self.pairs[4..], &mut |_| ()).unwrap()
    }

    /// Several seeds; the run is interrupted after so many steps in all.
    fn several(&self, checkpoint: Option<(&Path, bool)>, steps: usize) -> SeedRuns {
        let mut engine = self.engine();
        let interrupt = AtomicBool::new(false);
        let plan = checkpoint.map(|(path, resume)| CheckpointPlan {
            path: path.to_owned(),
            resume,
            inputs: RunInputs::default(),
        });
        let mut trainer =
            Trainer { engine: &mut engine, config: &self.config, checkpoints: plan.as_ref(), interrupt: &interrupt };
        let mut taken = 0;
        let sets = (&self.pairs[..4], &self.pairs[4..]);
        let observe = &mut |event: Event<'_>| {
            taken += usize::from(matches!(event, Event::Step(_)));
            if taken >= steps {
                interrupt.store(true, Ordering::Relaxed);
            }
        };
        trainer.train_seeds(sets, &[], 3, observe).unwrap()
    }
}

#[test]
fn each_seed_is_the_run_that_it_would_be_alone() {
    let bench = Bench::random("llama", "f32");
    for kind in [Kind::Add, Kind::Gate] {
        let setting = Setting::new(&bench, kind);
        let runs = setting.several(None, usize::MAX);
        assert_eq!(runs.runs.iter().map(|r| r.seed).collect::<Vec<_>>(), [FIRST, FIRST + 1, FIRST + 2]);
        let alone: Vec<Trained> = runs.runs.iter().map(|r| setting.alone(r.seed)).collect();
        for (run, alone) in runs.runs.iter().zip(&alone) {
            assert!(run.trained.vector == alone.vector, "{kind}: seed {} differs from its run alone", run.seed);
            assert_eq!(run.trained.history, alone.history);
        }
        assert!(alone[0].vector != alone[1].vector, "the seed decides something");
        assert_eq!(runs.cosines.len(), 3);
        assert!(runs.cosines.iter().all(|c| (-1.0..=1.0 + 1e-9).contains(c)), "{:?}", runs.cosines);
        if kind == Kind::Add {
            for (got, (a, b)) in runs.cosines.iter().zip([(1, 0), (2, 0), (2, 1)]) {
                assert!((got - cosine(&alone[a].vector, &alone[b].vector)).abs() < 1e-6, "{got}");
            }
        }
    }
}

#[test]
fn an_interrupted_seed_is_resumed() {
    let bench = Bench::random("llama", "f32");
    let setting = Setting::new(&bench, Kind::Add);
    let whole = setting.several(None, usize::MAX);
    let path = bench.path("v.ckpt");
    // In the middle of the second seed.
    let stopped = setting.several(Some((&path, false)), 6);
    assert_eq!((stopped.runs.len(), &stopped.runs[0].trained.stop), (2, &Stop::Interrupted));
    assert!(stopped.runs[0].trained.vector == whole.runs[0].trained.vector);
    assert!(seed_checkpoint(&path, FIRST, FIRST + 1).exists() && !seed_checkpoint(&path, FIRST, FIRST + 2).exists());
    let resumed = setting.several(Some((&path, true)), usize::MAX);
    for (a, b) in resumed.runs.iter().zip(&whole.runs) {
        assert!(a.trained.vector == b.trained.vector, "seed {}", a.seed);
        assert_eq!((&a.trained.stop, &a.trained.history), (&Stop::Finished, &b.trained.history));
    }
    assert_eq!(resumed.cosines, whole.cosines);
}

#[test]
fn the_spread_is_reported_and_the_vector_is_that_of_one_seed() {
    let bench = Bench::random("llama", "f32");
    let flags = "--layer 1 --steps 4 --batch 2 --val 0 --test 0.34 --random 2";
    let s = bench.summary("v.gguf", &format!("{flags} --seeds 3"));
    assert_eq!(bench.left(), ["llama.gguf", "v.gguf", "v.md"], "no checkpoint is left behind");
    let changes: Vec<f64> = s["seeds"]["changes"].as_array().unwrap().iter().map(|c| c.as_f64().unwrap()).collect();
    let rows = s["heldout"].as_array().unwrap();
    let change = |name: &str| {
        rows.iter().find(|r| r["condition"] == name).unwrap()["logp_diff_change"]["mean"].as_f64().unwrap()
    };
    assert_eq!(
        changes,
        [change("vector, scale +1"), change("vector of another seed 1"), change("vector of another seed 2")]
    );
    let mean = changes.iter().sum::<f64>() / 3.0;
    assert!((s["seeds"]["mean_change"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert_eq!(s["seeds"]["seeds"], serde_json::json!([0, 1, 2]));
    let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
    assert!(card.contains("3 seeds (0, 1, 2), the same split and pairs:"), "{card}");
    let one = bench.summary("w.gguf", flags);
    assert_eq!(one["seeds"], serde_json::Value::Null);
    assert!(bench.numbers("v.gguf") == bench.numbers("w.gguf"), "the first seed's vector is that of a run alone");
    assert_eq!(bench.vector("v.gguf").provenance.number("heldout_seeds"), Some(3.0));
}
