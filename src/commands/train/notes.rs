//! What is said on stderr before a run.

use super::options::Args;
use super::pairs::Pairs;
use bidpo_core::data::inspect::{PairText, inspect};
use bidpo_core::data::{ChatTemplate, PairGroups, PreferenceSet};
use bidpo_core::steer::ModelIdentity;
use bidpo_core::train::{Parts, TrainConfig};
use ggml_grad::llama::Model;

/// Prints model, settings and data on stderr.
pub(super) fn describe(
    args: &Args,
    config: &TrainConfig,
    model: &Model,
    identity: &ModelIdentity,
    template: &ChatTemplate,
    set: &str,
    pairs: &Pairs,
) {
    eprintln!(
        "{} ({}), {} of {}, {} thread{}, template {}",
        identity.name,
        model.description(),
        config.layers.labelled(),
        model.n_layer(),
        args.model.threads(),
        if args.model.threads() == 1 { "" } else { "s" },
        template.described()
    );
    eprintln!(
        "{set}: {} training pairs, {} validation pairs, {} test pairs",
        pairs.train.len(),
        pairs.valid.len(),
        pairs.test.len()
    );
}

/// Prints what the user should know about the parts.
pub(super) fn note_groups(groups: &PairGroups, parts: &Parts, texts: &[PairText]) {
    match groups.repeated[..] {
        [] => {}
        [(earlier, later)] => eprintln!(
            "note: one pair repeats an earlier one word for word and is left out: {} repeats {}",
            texts[later].place, texts[earlier].place
        ),
        [(earlier, later), ..] => eprintln!(
            "note: {} pairs repeat earlier ones word for word and are left out (the first: {} repeats {})",
            groups.repeated.len(),
            texts[later].place,
            texts[earlier].place
        ),
    }
    if let [(earlier, later), ..] = groups.swapped[..] {
        eprintln!(
            "warning: {} and {} have the same prompt with chosen and rejected swapped ({} such pair{} in all): one of them \
             is wrong. They stay in one part of the split",
            texts[earlier].place,
            texts[later].place,
            groups.swapped.len(),
            if groups.swapped.len() == 1 { "" } else { "s" }
        );
    }
    for &(first, n) in &groups.common {
        eprintln!(
            "note: {n} of {} pairs share an answer as in {}: these pairs are not kept in one part, so the held-out figures \
             measure that answer on other prompts",
            groups.n_pairs(),
            texts[first].place
        );
    }
    if groups.largest() > 1 {
        eprintln!(
            "note: {} pairs form {} groups of near-duplicates, none of which is cut by the split (the largest has {} pairs)",
            groups.n_pairs(),
            groups.groups.len(),
            groups.largest()
        );
    }
    if let Some(unheld) = parts.unheld {
        let part = match (unheld.valid, unheld.test) {
            (true, true) => "no pair is held out: there is neither validation nor a test",
            (true, false) => "no pair is held out for validation: the last step's vector is kept",
            _ => "no pair is held out for the test: nothing is measured at the end",
        };
        eprintln!(
            "warning: {part}, because the groups of near-duplicates are too large ({} groups, the largest of {} pairs). Give \
             pairs with more different prompts and answers, or see --split-by",
            unheld.groups, unheld.largest
        );
    }
}

/// Prints what the user should know about the data.
/// `alone`: there are no rejected answers to compare with.
pub(super) fn note_data(set: &PreferenceSet, texts: &[PairText], alone: bool) {
    match set.n_empty_prompts() {
        0 => {}
        1 => eprintln!("note: the prompt of one pair is empty: it trains on what follows an empty question"),
        n => eprintln!("note: the prompts of {n} pairs are empty: they train on what follows an empty question"),
    }
    if alone {
        return;
    }
    for warning in inspect(texts).warnings() {
        eprintln!("note: {warning} (`bidpo data inspect` shows more)");
    }
}
