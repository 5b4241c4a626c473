//! Stop sequences: text is buffered until it cannot be part of one.

/// Finds stop sequences in text that comes in pieces. Text that may be the start of one is buffered.
#[derive(Debug)]
pub(crate) struct StopFilter {
    stops: Vec<String>,
    buffered: String,
}

/// Output for one piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StopOutput {
    /// Text that is safe to show.
    pub text: String,
    /// The number of the stop sequence that was met; the text ends before it.
    pub met: Option<usize>,
}

impl StopFilter {
    /// For these sequences; empty ones stop nothing.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, buffered: String::new() }
    }

    /// Adds text. After a stop nothing more may be added.
    pub(crate) fn push(&mut self, piece: &str) -> StopOutput {
        self.buffered.push_str(piece);
        // The earliest start counts, whichever sequence it is of.
        let sequences = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        if let Some((at, i)) = sequences.filter_map(|(i, s)| Some((self.buffered.find(s.as_str())?, i))).min() {
            self.buffered.truncate(at);
            return StopOutput { text: std::mem::take(&mut self.buffered), met: Some(i) };
        }
        let safe = self.buffered.len() - self.suspicious();
        let rest = self.buffered.split_off(safe);
        StopOutput { text: std::mem::replace(&mut self.buffered, rest), met: None }
    }

    /// The buffered text, which did not become a stop sequence.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.buffered)
    }

    /// Bytes at the end of the buffered text that some sequence starts with.
    fn suspicious(&self) -> usize {
        let starts = self.buffered.char_indices().map(|(i, _)| i);
        starts
            .map(|i| &self.buffered[i..])
            .find(|tail| self.stops.iter().any(|s| s.starts_with(tail)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All splits of `text` in up to three pieces give this text, and stop or not.
    fn check(stops: &[&str], text: &str, want: &str, stopped: bool) {
        let cuts: Vec<usize> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
        for &i in &cuts {
            for &j in cuts.iter().filter(|&&j| j >= i) {
                let mut filter = StopFilter::new(stops.iter().map(|s| (*s).to_owned()).collect());
                let (mut out, mut met) = (String::new(), false);
                for piece in [&text[..i], &text[i..j], &text[j..]] {
                    if !met {
                        let passed = filter.push(piece);
                        out += &passed.text;
                        met = passed.met.is_some();
                        assert!(want.starts_with(&out), "{out:?} went out too early: {i} {j}");
                    }
                }
                if !met {
                    out += &filter.finish();
                }
                assert_eq!((out.as_str(), met), (want, stopped), "{i} {j}");
            }
        }
    }

    #[test]
    fn sequences_are_found_wherever_the_pieces_are_cut() {
        check(&["\n\n"], "one\ntwo\n\nthree", "one\ntwo", true);
        check(&["END"], "ENENDE", "EN", true);
        check(&["aab"], "aaab", "a", true);
        check(&["é!"], "caféé!x", "café", true);
        check(&["b", "ab"], "xaby", "x", true);
        check(&["stop"], "sto", "sto", false);
        check(&["", "q"], "nothing here", "nothing here", false);
        check(&[], "text", "text", false);
        check(&["x"], "x", "", true);
    }

    #[test]
    fn only_what_may_become_a_stop_is_held() {
        let mut filter = StopFilter::new(vec!["User:".into()]);
        assert_eq!(filter.push("Hello Us"), StopOutput { text: "Hello ".into(), met: None });
        assert_eq!(filter.push("hers"), StopOutput { text: "Ushers".into(), met: None });
        assert_eq!(filter.finish(), "");
        let mut filter = StopFilter::new(vec!["".into(), "c".into(), "b".into()]);
        assert_eq!(filter.push("abc"), StopOutput { text: "a".into(), met: Some(2) });
    }
}
