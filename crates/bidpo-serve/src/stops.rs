//! Stop sequences: text held back until it cannot become one.

/// Finds stop sequences in text that comes in pieces. What may still become the start of one is held back.
#[derive(Debug)]
pub(super) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What came out of one piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// Text that is safe to show.
    pub text: String,
    /// A stop sequence was met; the text ends before it.
    pub stopped: bool,
}

impl StopFilter {
    /// For these sequences; empty ones are left out.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Adds text. After a stop nothing more may be added.
    pub(crate) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        // The earliest start counts, whichever sequence it is of.
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return Passed { text: std::mem::take(&mut self.held), stopped: true };
        }
        let safe = self.held.len() - self.suspicious();
        let rest = self.held.split_off(safe);
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back and did not become a stop sequence.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that some sequence starts with.
    fn suspicious(&self) -> usize {
        let starts = self.held.char_indices().map(|(i, _)| i);
        starts.map(|i| &self.held[i..]).find(|tail| self.stops.iter().any(|s| s.starts_with(tail))).map_or(0, str::len)
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
                        met = passed.stopped;
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
        assert_eq!(filter.push("Hello Us"), Passed { text: "Hello ".into(), stopped: false });
        assert_eq!(filter.push("hers"), Passed { text: "Ushers".into(), stopped: false });
        assert_eq!(filter.finish(), "");
    }
}
