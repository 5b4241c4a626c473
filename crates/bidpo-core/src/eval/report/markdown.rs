//! A run as Markdown, which also reads well in a terminal.

use super::tables::{
    SIDE_BY_SIDE, cut_off_cells, main_cells, side_cells, steered_cells, style_cells, surface_cells, verdict_cells,
};
use crate::eval::analysis::{Analysis, MIN_CLUSTERS};
use crate::eval::items::Protocol;
use crate::eval::results::Manifest;
use crate::text::{Table, render};
use serde::Serialize;

const TEMPLATE: &str = include_str!("templates/report.md");

/// Data of the template.
#[derive(Serialize)]
struct Data<'a> {
    title: String,
    summary: Vec<String>,
    /// Name of the headline measure; absent for a judge's comparisons.
    measure: Option<&'a str>,
    headline: Table,
    others: Vec<Table>,
    method: String,
}

/// A run's results: summary, tables, method.
///
/// # Panics
/// If the template does not fit its data, which are both constants of the program.
pub fn markdown(a: &Analysis) -> String {
    let (measure, headline) = match verdict_cells(a) {
        Some(table) => (None, table),
        None => (Some(a.tables[0].measure.name()), main_cells(&a.tables[0])),
    };
    let mut others = Vec::from_iter(steered_cells(&a.tables[0]));
    others.extend(style_cells(a));
    others.extend(a.tables[1..].chunks(SIDE_BY_SIDE).map(side_cells));
    others.extend(cut_off_cells(a));
    others.extend(surface_cells(a));
    let data = Data { title: title(a), summary: a.summary(), measure, headline, others, method: method(a) };
    render("report.md", TEMPLATE, data).expect("the template fits its data")
}

/// The heading of a run: benchmark, protocol, items, model, prompt.
pub(super) fn title(a: &Analysis) -> String {
    let m = &a.manifest;
    let preset = m.prompt.get("preset").and_then(|p| p.as_str()).map_or(String::new(), |p| format!(", prompt {p}"));
    format!(
        "{} {}, {} {}, {} ({}){preset}",
        m.benchmark,
        m.protocol,
        m.items,
        a.items_word(),
        m.model.file,
        m.model.quantization
    )
}

/// Threads and CPU level, as a sentence after a space.
fn computed_with(manifest: &Manifest) -> String {
    let with: Vec<String> = manifest.computations().iter().map(ToString::to_string).collect();
    match &with[..] {
        [] => String::new(),
        [one] => format!(" Computed with {one}."),
        several => format!(
            " Put together from results with different threads or CPU levels, which differ in their last bits: {}.",
            several.join("; ")
        ),
    }
}

/// Statistical methods of the report, in one or two lines.
pub(super) fn method(a: &Analysis) -> String {
    let threads = computed_with(&a.manifest);
    if a.protocol == Protocol::Judge {
        return format!(
            "An answer wins if the judge prefers it in both orders; order-averaged preference: the sign of the letters' \
             log-odds, averaged over both orders; p: exact sign tests; interval: 95 %, Clopper-Pearson, its inversion.{threads}"
        );
    }
    let table = &a.tables[0];
    let binary = table.measure.is_binary();
    let clusters = table.rows.first().and_then(|r| r.estimate.clusters);
    let base = match (binary, clusters.is_some()) {
        (true, false) => "Intervals: 95 %, Wilson; differences paired, Tango's score interval; p: McNemar's score test",
        (true, true) => {
            "Intervals: 95 %, Wilson's and Tango's for the effective number of items, with t; p: the same score test"
        }
        (false, false) => "Intervals: 95 %, Student's t; differences paired; p: Student's t",
        (false, true) => {
            "Intervals: 95 %, t with cluster-robust standard errors (CR2); differences paired; p: the same t"
        }
    };
    let mut out = format!("{base}. An interval excludes 0 exactly where its p is below 0.05.");
    if let Some(k) = clusters {
        out += &format!(" The {k} categories are clusters.");
    } else if a.categories > 0 {
        out += &format!(
            " Items are taken as independent draws: {} categories do not make clusters (at least {MIN_CLUSTERS}, with several \
             items).",
            a.categories
        );
    }
    if a.primary().is_some() {
        out += &format!(
            " Primary comparison: steered minus unsteered on {}, not corrected. All other comparisons of the vector are one \
             family with Holm's correction, tested at {:.0} %.",
            table.measure.name().replace('_', " "),
            100.0 * a.family_alpha()
        );
    }
    out + &threads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::analysis::analyse;
    use crate::eval::analysis::tests::{bits, run_of};

    #[test]
    fn the_text_holds_the_figures() {
        let u = bits(40, |i| i % 2 == 0);
        let s = bits(40, |i| i % 2 == 0 || i < 10);
        let run = run_of(&[("unsteered", "unsteered", &u), ("steered", "steered", &s), ("a|b", "random", &u)]);
        let text = markdown(&analyse(&run).unwrap());
        for part in [
            "## truthfulqa mc1, 40 questions, m.gguf (Q4_1), prompt qa",
            "50.0 % (20 of 40)",
            "+12.5 points [",
            "+5 -0",
            "0.025",
            "a\\|b",
            "steered minus",
            "mc1_per_token",
            "always the longest",
            "best of 23, chosen on other items: always the shortest",
            "4 categories do not make clusters",
            "Primary comparison: steered minus unsteered on mc1, not corrected",
            "gain where the best question-blind rule is right",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn threads_and_cpu_stand_below_the_tables() {
        let u = bits(40, |i| i % 2 == 0);
        let mut run = run_of(&[("unsteered", "unsteered", &u)]);
        let said = |run: &crate::eval::results::Run| markdown(&analyse(run).unwrap());
        assert!(!said(&run).contains("Computed"));
        (run.manifest.threads, run.manifest.cpu) = (1, Some("avx2".into()));
        assert!(said(&run).ends_with("Computed with 1 thread, CPU level avx2.\n"), "{}", said(&run));
        run.manifest.threads = 0;
        let with = |threads| crate::eval::results::Computation { threads, cpu: None };
        run.manifest.computed_with = vec![with(1), with(8)];
        assert!(said(&run).contains("different threads or CPU levels"), "{}", said(&run));
        assert!(said(&run).ends_with("1 thread; 8 threads.\n"), "{}", said(&run));
    }
}
