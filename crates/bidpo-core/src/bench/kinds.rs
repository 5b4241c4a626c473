//! The training step of each kind of intervention against that of a constant vector, and what retained texts cost.

use super::step::{Ready, Setting};
use super::{BenchError, Line, Measured, Name, Outcome, Rounds, Subject, alternate};
use crate::intervention::Kind;
use crate::train::{Retain, RetainSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Retained texts of a step.
const TEXTS: usize = 4;

/// Rank of the adapter.
pub(super) const RANK: usize = 8;

/// The lines of the kinds in the residual stream; behind them stand those of an adapter and of retained texts.
const KINDS: [(Name, Kind); 6] = [
    (Name::Gate, Kind::Gate),
    (Name::LinearGate, Kind::LinearGate),
    (Name::PromptGate, Kind::PromptGate),
    (Name::Project, Kind::Project),
    (Name::Clamp, Kind::Clamp),
    (Name::Lowrank, Kind::LowRank),
];

/// The lines that are wanted.
pub(super) fn lines(s: &mut Subject<'_>) -> Result<Vec<Line>, BenchError> {
    let wants = |name: Name| s.settings.only.contains(&Name::Kinds) || s.settings.only.contains(&name);
    let wanted: Vec<(Name, Kind)> = KINDS.into_iter().filter(|(name, _)| wants(*name)).collect();
    let (lora, retained) = (wants(Name::Lora), wants(Name::Retained));
    if wanted.is_empty() && !lora && !retained {
        return Ok(Vec::new());
    }
    s.say("training steps of the kinds: capturing the pairs");
    let setting = |kind: Kind| Setting { kind: kind.into(), ..Setting::default() };
    let mut add = Ready::new(&s.model, s.layer, &s.pairs, s.settings.threads, setting(Kind::Add))?;
    let mut lines = Vec::new();
    for (name, kind) in wanted {
        s.say(&format!("training step of kind {kind} in turns with that of add"));
        let rounds = against_add(s, setting(kind), &mut add)?;
        let settings = setting(kind).kind.settings();
        let settings = if settings.is_empty() { String::new() } else { format!(" ({settings})") };
        lines.push(Line {
            name,
            what: format!("one training step of kind {kind}{settings} at layer {}, {} pairs", s.layer, s.pairs.len()),
            against: "the step of kind add on the same pairs".into(),
            unit: "ms",
            outcome: Outcome::Measured(Measured::of(&rounds)),
            limit: name.limit(&s.model, s.layer),
        });
    }
    if lora {
        s.say("training step of an adapter in turns with that of add");
        let rounds = against_add(s, Setting { lora: Some(RANK), ..setting(Kind::Add) }, &mut add)?;
        lines.push(Line {
            name: Name::Lora,
            what: format!(
                "one training step of an adapter of rank {RANK} on the usual matrices of all blocks above layer {}, {} pairs",
                s.layer,
                s.pairs.len()
            ),
            against: "the step of kind add on the same pairs".into(),
            unit: "ms",
            outcome: Outcome::Measured(Measured::of(&rounds)),
            limit: Name::Lora.limit(&s.model, s.layer),
        });
    }
    if retained {
        lines.push(retention(s, &mut add)?);
    }
    Ok(lines)
}

/// Steps of a setting in turns with those of `add`.
fn against_add(s: &mut Subject<'_>, setting: Setting<'_>, add: &mut Ready) -> Result<Rounds, BenchError> {
    let mut ready = Ready::new(&s.model, s.layer, &s.pairs, s.settings.threads, setting)?;
    let (mut ours, mut reference) = (ready.stepper(), add.stepper());
    alternate(s.settings.rounds, &mut || Ok::<_, BenchError>(ours.step()?.wall), &mut || Ok(reference.step()?.wall))
}

/// What a retained token costs, over what a token of a pair does.
fn retention(s: &mut Subject<'_>, add: &mut Ready) -> Result<Line, BenchError> {
    s.say("training step with retained texts in turns with the one without");
    let failed = |reason: String| BenchError::File { path: "builtin".into(), reason };
    let mut set = RetainSet::open(Path::new("builtin")).map_err(|e| failed(e.to_string()))?;
    set.items.truncate(TEXTS);
    let never = AtomicBool::new(false);
    let texts = set.encode(&s.model, &s.template, false, None, s.settings.threads, &never);
    let texts = texts.map_err(|e| failed(e.to_string()))?;
    let retain = Retain { weight: 1.0, budget: None, texts: Some(TEXTS) };
    let setting = Setting { kind: Kind::Add.into(), retain: Some((retain, &texts)), ..Setting::default() };
    let mut ready = Ready::new(&s.model, s.layer, &s.pairs, s.settings.threads, setting)?;
    let n_retained: usize = texts.iter().map(|t| t.tokens.n_tokens()).sum();
    let (mut with, mut without) = (ready.stepper(), add.stepper());
    let (of_pairs, of_texts) = (s.unique_tokens() as f64, n_retained as f64);
    // A rehearsal of each, then both in turns.
    with.step()?;
    without.step()?;
    let rounds = Rounds::measure(s.settings.rounds, || {
        let (with, without) = (with.step()?.wall, without.step()?.wall);
        Ok::<_, BenchError>(((with - without) / of_texts, without / of_pairs))
    })?;
    Ok(Line {
        name: Name::Retained,
        what: format!(
            "what a retained token adds to a step, {TEXTS} texts of {n_retained} tokens beside {} pairs",
            s.pairs.len()
        ),
        against: "what a token of the pairs takes in a step without retained texts".into(),
        unit: "ms/token",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Retained.limit(&s.model, s.layer),
    })
}
