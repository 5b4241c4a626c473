//! Allowed tokens against those of llama.cpp's own sampler, and grammars that it does not survive.

use super::position::Position;
use super::{Grammar, GrammarError};
use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{DType, Model, ModelParams, Token, sys};
use crate::synth;
use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// llama.cpp's sampler for a grammar.
struct Theirs(*mut sys::llama_sampler);

impl Theirs {
    fn new(model: &Model, gbnf: &str) -> Self {
        let (vocab, text) = (model.vocab(), CString::new(gbnf).unwrap());
        let text = text.as_c_str();
        // SAFETY: the vocabulary lives as long as the model; the texts end with NUL and are copied.
        let raw = guarded(|| unsafe { throwing::llama_sampler_init_grammar(vocab, text.as_ptr(), c"root".as_ptr()) });
        let raw = raw.unwrap();
        assert!(!raw.is_null(), "{gbnf}");
        Self(raw)
    }

    fn allowed(&self, n_vocab: usize) -> Vec<bool> {
        let one = |id| sys::llama_token_data { id, logit: 0.0, p: 0.0 };
        let mut tokens: Vec<_> = (0..n_vocab as Token).map(one).collect();
        let mut list =
            sys::llama_token_data_array { data: tokens.as_mut_ptr(), size: n_vocab, selected: -1, sorted: false };
        let (raw, pointer) = (self.0, &raw mut list);
        // SAFETY: sampler and list are alive.
        guarded(|| unsafe { throwing::llama_sampler_apply(raw, pointer) }).unwrap();
        tokens.iter().map(|t| t.logit.is_finite()).collect()
    }

    fn accept(&mut self, token: Token) {
        let raw = self.0;
        // SAFETY: alive.
        guarded(|| unsafe { throwing::llama_sampler_accept(raw, token) }).unwrap();
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::llama_sampler_free(self.0) };
    }
}

fn model() -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let family = synth::family("llama").unwrap();
    let shape = synth::Shape { n_vocab: 3000, ..family.shape() };
    synth::write(&path, family, &shape, DType::F32, 1).unwrap();
    Model::load(&path, &ModelParams { vocab_only: true, ..ModelParams::default() }).unwrap()
}

const JSON: &str = r#"root ::= object
space ::= | " " | "\n" [ \t]{0,20}
char ::= [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
string ::= "\"" char* "\""
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?
value ::= object | array | string | number | "true" | "null"
member ::= string space ":" space value
object ::= "{" space (member space ("," space member space)*)? "}"
array ::= "[" space (value space ("," space value space)*)? "]"
"#;

#[test]
fn the_same_tokens_are_allowed_as_by_llama_cpp() {
    let model = model();
    let n = model.n_vocab();
    // No character begins with these bytes. llama.cpp allows them where a set is written as what is not in it.
    let is_no_start = |t: &Token| model.token_bytes(*t, true).iter().any(|&b| b >= 0xF5);
    let starts_nothing: Vec<Token> = (0..n as Token).filter(is_no_start).collect();
    let mut seed = 5u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for gbnf in [
        JSON,
        "root ::= \"yes\" | \"no\" | \"yesterday\"",
        "root ::= [a-z]+ (\" \" [a-z]+){0,3} \".\"?",
        "root ::= item+ # a comment\nitem ::= \"- \" [^\\r\\n\\x0b]* \"\\n\"\n\n",
        "root ::= (\n  \"a\" |\n  \"bt\"\n) tail?\r\ntail ::= [a-z\\]]{2,3} .{4} \"\\u00e9\"{1,}\n",
        "root ::= | \"x\"",
        "root ::= [a-zé-ü日]* \"!\"",
        "root ::= .{3,5}",
        "root ::= [^a-e] (\"ea\" | \"e\" \"a\" | [e] [at])* \"\\n\"",
        "root ::= s\ns ::= \"t\" s \"t\" | \"e\" s \"e\" | [te]?",
        "root ::= (\"e\"? \"t\"?){2,6} \"a\"{2}",
        "root ::= expr\nexpr ::= term ([-+] term)*\nterm ::= [0-9]{1,2} | \"(\" expr \")\"",
        "root ::= \"at\"+? \"tt\"{2,}",
        "root ::= \"\\U0001F600\" [\\U0001F600-\\U0001F64F]+ \"\\t\"",
        "a ::= \"x\"\nroot ::= a a\na ::= \"e\" | \"et\"",
    ] {
        for _ in 0..12 {
            let mut theirs = Theirs::new(&model, gbnf);
            let mut ours = Grammar::new(&model, gbnf).unwrap();
            let mut text = Vec::new();
            for _ in 0..24 {
                let allowed = ours.position.allowed(&ours.pieces).unwrap();
                let mut want = theirs.allowed(n);
                starts_nothing.iter().for_each(|&t| want[t as usize] = false);
                let wrong: Vec<Token> = (0..n as Token).filter(|&t| allowed[t as usize] != want[t as usize]).collect();
                assert!(wrong.is_empty(), "{gbnf}\nbehind {:?}: {wrong:?}", String::from_utf8_lossy(&text));
                let may: Vec<Token> = (0..n as Token).filter(|&t| want[t as usize] && !model.is_eog(t)).collect();
                // One token by itself is judged as all of them together.
                for token in (0..8).map(|_| random(n) as Token).chain(may.first().copied()) {
                    assert_eq!(ours.allows(token).unwrap(), want[token as usize], "{gbnf}: {token}");
                }
                if may.is_empty() {
                    break;
                }
                let token = may[random(may.len())];
                text.extend(model.token_bytes(token, true));
                theirs.accept(token);
                assert!(ours.accept(token).unwrap());
            }
        }
    }
}

#[test]
fn a_token_that_may_not_come_changes_nothing() {
    let model = model();
    let mut grammar = Grammar::new(&model, "root ::= \"et\" \"a\"").unwrap();
    let token = |text: &[u8]| (0..model.n_vocab() as Token).find(|&t| model.token_bytes(t, true) == text).unwrap();
    let (et, a) = (token(b"et"), token(b"a"));
    assert!(!grammar.accept(a).unwrap() && grammar.accept(et).unwrap() && grammar.allows(a).unwrap());
    assert!(!grammar.allows(-1).unwrap() && !grammar.accept(1 << 30).unwrap());
}

#[test]
fn ambiguous_grammars_cost_little() {
    let model = model();
    let pieces = model.pieces();
    let cases = [
        ("optional parts", "root ::= (\"a\"?){500}".to_owned(), "aaaa"),
        ("different optional parts", format!("root ::= {}", "\"a\"? \"at\"? ".repeat(400)), "aata"),
        ("optional parts of any character", "root ::= (.?){400}".to_owned(), "etao"),
        ("repetitions of repetitions", "root ::= (([a-z]+)+)+ \"!\"".to_owned(), "etaoin"),
        ("repetitions of what may be empty", "root ::= (([a-z]*)*)* \"!\"".to_owned(), "etaoin"),
        ("a common beginning", format!("root ::= {}", vec!["\"etao\" [a-z]"; 3000].join(" | ")), "et"),
        ("both halves the same", "root ::= s\ns ::= \"a\" s s | \"a\"".to_owned(), "aaaaaaaa"),
        // llama.cpp looks for left recursion along each way through these rules.
        (
            "a lattice of rules",
            (0..60).map(|i| format!("a{i} ::= a{} | a{}\n", i + 1, i + 1)).collect::<String>()
                + "a60 ::= \"e\"\nroot ::= a0",
            "e",
        ),
        // And calls itself for each of these.
        (
            "a chain of rules",
            (0..15_000).map(|i| format!("a{i}::=a{}\n", i + 1)).collect::<String>() + "a15000::=\"e\"\nroot::=a0",
            "e",
        ),
    ];
    for (what, gbnf, text) in cases {
        let begun = Instant::now();
        let mut position = Position::new(&gbnf).unwrap_or_else(|e| panic!("{what}: {e}"));
        for c in text.bytes() {
            assert!(position.allowed(&pieces).unwrap().contains(&true), "{what}");
            assert!(position.accept(&[c]).unwrap(), "{what}");
        }
        position.allowed(&pieces).unwrap();
        // Two seconds of a busy machine; each of these took llama.cpp at least minutes.
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}: {:?}", begun.elapsed());
    }
}

#[test]
fn what_is_beyond_the_limits_is_refused_at_once() {
    for (what, gbnf) in [
        ("optional parts of optional parts", "root ::= ((\"a\"?){2000}){2000}".to_owned()),
        ("two ways at each character", "root ::= r\nr ::= \"a\" (r \"b\" | r \"c\") | \"d\"".to_owned()),
        ("empty alternatives", format!("root ::= (a){{2000}}\na ::= \"x\" {}", "|".repeat(200_000))),
    ] {
        let begun = Instant::now();
        let error = Position::new(&gbnf).unwrap_err();
        assert!(matches!(error, GrammarError::TooAmbiguous { .. }), "{what}: {error}");
        assert!(error.to_string().contains("more than 20000 ways"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}: {:?}", begun.elapsed());
    }
    assert_eq!(Position::new("root ::= root \"a\" | \"b\"").unwrap_err(), GrammarError::LeftRecursive);
    assert_eq!(Position::new("root ::= a\na ::= b? root \"x\"\nb ::= \"b\"").unwrap_err(), GrammarError::LeftRecursive);
    assert_eq!(Position::new("root ::= root").unwrap_err(), GrammarError::Nothing);
}
