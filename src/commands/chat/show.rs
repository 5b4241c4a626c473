//! Descriptions of the chat's state.

use bidpo_core::chat::{ChatSession, TokenStats};
use bidpo_core::layers::Layers;
use bidpo_core::steer::ScaledVector;

/// `honest: scale 1.5 (7.5 % of the residual norm)`
pub fn describe(dial: &ScaledVector) -> String {
    if let Some(adapter) = &dial.vector.adapter {
        return format!("{}: scale {} (LoRA adapter of {})", dial.name, short(dial.scale), adapter.rank_in_words());
    }
    let percent = dial.vector.percent_of_scale(dial.scale);
    let percent = percent.map_or_else(String::new, |p| format!(" ({p:.1} % of the residual norm)"));
    format!("{}: scale {}{percent}", dial.name, short(dial.scale))
}

/// At most three decimals: a scale that was given in percent has more digits than anyone wants to read.
pub fn short(scale: f32) -> String {
    let text = format!("{scale:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Of each vector its layers, the norm of what is added there, and what that is of the residual norm.
pub fn layers(session: &ChatSession) -> String {
    let mut out = String::new();
    let only = session.layers();
    for dial in session.dials() {
        if let Some(adapter) = &dial.vector.adapter {
            let blocks =
                Layers::new(adapter.layers.iter().copied()).map_or_else(|_| "no block".to_owned(), |l| l.to_string());
            out += &format!(
                "{} at {}, LoRA adapter of {}: {} of blocks {blocks} (/layers leaves it as it is)\n",
                dial.name,
                short(dial.scale),
                adapter.rank_in_words(),
                adapter.matrices.join(", ")
            );
            continue;
        }
        let own = Layers::new(dial.vector.layers()).map_or_else(|e| e.to_string(), |l| l.labelled());
        out += &format!("{} at {}, {own}\n", dial.name, short(dial.scale));
        let mut lines: Vec<(usize, usize, String)> = Vec::new();
        for layer in dial.vector.layers() {
            let text = if only.is_some_and(|list| !list.contains(&layer)) {
                "left out".to_owned()
            } else {
                let norm = dial.vector.norm(layer) * f64::from(dial.scale).abs();
                let percent = dial.vector.residual_norm(layer).map(|r| 100.0 * norm / r);
                let percent = percent.map_or_else(String::new, |p| format!(", {p:.1} % of the residual norm"));
                format!("norm {norm:.2}{percent}")
            };
            match lines.last_mut() {
                Some((_, last, t)) if *last + 1 == layer && *t == text => *last = layer,
                _ => lines.push((layer, layer, text)),
            }
        }
        for (first, last, text) in lines {
            let at = if first == last { first.to_string() } else { format!("{first}-{last}") };
            out += &format!("  {at:>7}  {text}\n");
        }
    }
    match only {
        Some(list) => out += &format!("restricted to {} (/layers all lifts it)\n", list.labelled()),
        None => out += &format!("this model takes layers 1-{}\n", session.model().n_layer() - 1),
    }
    out
}

/// Of each gate its opening at each token, in percent; `-` where nothing is changed.
pub fn gates(session: &ChatSession) -> String {
    let trace = session.gates();
    if trace.gates.is_empty() {
        return "no vector with a gate steers (or no question was answered since)\n".to_owned();
    }
    let mut out = String::new();
    for gate in &trace.gates {
        let known: Vec<f64> = gate.at.iter().flatten().copied().collect();
        let mean = if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        out += &format!(
            "{}: opening in percent, {:.0} in the mean over {} of {} tokens; the answer begins behind token {}\n",
            gate.name,
            100.0 * mean,
            known.len(),
            gate.at.len(),
            trace.n_prompt
        );
        for (i, (token, open)) in trace.tokens.iter().zip(&gate.at).enumerate() {
            let text = session.model().detokenize(&[*token], true).replace('\n', "\\n");
            let open = open.map_or_else(|| "-".to_owned(), |x| format!("{:.0}", 100.0 * x));
            out += &format!("  {:>5}  {open:>5}  {text}\n", i + 1);
        }
    }
    out
}

/// Tokens, speeds, and the room in the context.
pub fn stats(session: &ChatSession) -> String {
    let stats = session.stats();
    let mut out = String::new();
    if stats.total.answers > 0 {
        out += &tally("last answer", &stats.last);
        out += &tally(&format!("all {} answers", stats.total.answers), &stats.total);
    }
    let (used, room) = (session.n_cached(), session.n_ctx());
    out += &format!(
        "context:     {used} of {room} tokens used ({:.0} %){}\n",
        100.0 * used as f64 / room as f64,
        if used == 0 && stats.total.answers > 0 {
            "; the steering changed, the next question is computed anew"
        } else {
            ""
        }
    );
    out
}

fn tally(label: &str, t: &TokenStats) -> String {
    format!(
        "{:<12} prompt {} tokens, {} of them reused, the rest at {:.1} tokens/s; answer {} tokens at {:.1} tokens/s\n",
        format!("{label}:"),
        t.prompt,
        t.reused,
        t.prompt_tokens_per_second(),
        t.generated,
        t.tokens_per_second()
    )
}
