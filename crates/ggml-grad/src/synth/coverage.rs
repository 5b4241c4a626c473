//! The architectures that llama.cpp knows: which of them the random models cover, and why the others are not covered.

use super::{Family, families};
use crate::llama;

/// One architecture of llama.cpp.
#[derive(Debug)]
pub struct Architecture {
    /// llama.cpp's name (`general.architecture`).
    pub name: &'static str,
    /// What random models there are of it, or why there are none.
    pub coverage: Coverage,
}

/// What random models there are of an architecture.
#[derive(Debug, Clone)]
pub enum Coverage {
    /// A decoder, with families that `bidpo check` can be tried on.
    Families(Vec<&'static Family>),
    /// A decoder that cannot be trained, with the reason.
    Refused(&'static str),
    /// A decoder without a random model: what it holds that no covered one does.
    NotTried(&'static str),
    /// No decoder that writes text from left to right, with its kind.
    NoDecoder(&'static str),
    /// An architecture that llama.cpp has and this table lacks.
    Unlisted,
}

const ENCODER: &str = "an encoder";
const EMBEDDING: &str = "embeddings only: its attention sees both sides";
const DIFFUSION: &str = "diffusion: it does not write from left to right";
const DRAFT: &str = "a draft head: it reads the hidden states of the model that it drafts for";
const SPEECH: &str = "speech: its tokens are codes of sound";
const NO_VECTOR: &str = "llama.cpp applies no control vector to it (its graph lacks `build_cvec`)";
const INDEXER: &str = "the op LIGHTNING_INDEXER, which picks the tokens that a query sees, has no rule";

/// Architectures without a family that can be trained, by name.
static OTHERS: &[(&str, Coverage)] = &[
    ("clip", Coverage::NoDecoder("an encoder of images: a name for llama.cpp's quantizer")),
    ("gptj", Coverage::NoDecoder("a name only: llama.cpp loads no such model")),
    ("bert", Coverage::NoDecoder(ENCODER)),
    ("modern-bert", Coverage::NoDecoder(ENCODER)),
    ("nomic-bert", Coverage::NoDecoder(ENCODER)),
    ("nomic-bert-moe", Coverage::NoDecoder(ENCODER)),
    ("neo-bert", Coverage::NoDecoder(ENCODER)),
    ("jina-bert-v2", Coverage::NoDecoder(ENCODER)),
    ("jina-bert-v3", Coverage::NoDecoder(ENCODER)),
    ("eurobert", Coverage::NoDecoder(ENCODER)),
    ("t5encoder", Coverage::NoDecoder(ENCODER)),
    ("t5", Coverage::NoDecoder("an encoder and a decoder")),
    ("gemma-embedding", Coverage::NoDecoder(EMBEDDING)),
    ("llama-embed", Coverage::NoDecoder(EMBEDDING)),
    ("gemma4-assistant", Coverage::NoDecoder(DRAFT)),
    ("eagle3", Coverage::NoDecoder(DRAFT)),
    ("dflash", Coverage::NoDecoder(DRAFT)),
    ("wavtokenizer-dec", Coverage::NoDecoder(SPEECH)),
    ("qwen3tts", Coverage::NoDecoder(SPEECH)),
    ("pockettts", Coverage::NoDecoder(SPEECH)),
    ("dream", Coverage::NoDecoder(DIFFUSION)),
    ("llada", Coverage::NoDecoder(DIFFUSION)),
    ("llada-moe", Coverage::NoDecoder(DIFFUSION)),
    ("rnd1", Coverage::NoDecoder(DIFFUSION)),
    ("clef", Coverage::NoDecoder("it scores options and writes no text")),
    ("plamo2", Coverage::Refused(NO_VECTOR)),
    ("hy_v4", Coverage::Refused(NO_VECTOR)),
    ("deepseek32", Coverage::Refused(INDEXER)),
    ("glm-dsa", Coverage::Refused(INDEXER)),
    ("dots3note", Coverage::Refused(INDEXER)),
    (
        "chameleon",
        Coverage::Refused("llama.cpp hides tokens of images in the first row of a batch's logits only (op SET)"),
    ),
    ("deepseek4", Coverage::NotTried("hyper-connections, compressed keys and values, an indexer")),
    ("qwen4exp", Coverage::NotTried("hyper-connections, an indexer, embeddings of n-grams")),
    ("minimax-m3", Coverage::NotTried("attention to picked blocks of tokens")),
    ("glm5-next", Coverage::NotTried("hyper-connections, delta nets and an indexer over pooled keys")),
];

/// Every architecture that llama.cpp knows, in its own order.
pub fn architectures() -> Vec<Architecture> {
    let of = |name: &str| {
        let own: Vec<&Family> = families().iter().filter(|f| f.arch() == name && !f.is_refused()).collect();
        if !own.is_empty() {
            return Coverage::Families(own);
        }
        OTHERS.iter().find(|(other, _)| *other == name).map_or(Coverage::Unlisted, |(_, coverage)| coverage.clone())
    };
    llama::architectures().into_iter().map(|name| Architecture { name, coverage: of(name) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The table follows llama.cpp's: fails where the pinned version has gained, lost or renamed an architecture.
    #[test]
    fn every_architecture_of_llama_cpp_is_listed_once() {
        let known: BTreeSet<&str> = llama::architectures().into_iter().collect();
        assert!(known.len() > 100 && known.contains("llama"), "{known:?}");
        let listed: BTreeSet<&str> = OTHERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed.len(), OTHERS.len(), "a name stands twice in the table");
        let covered: BTreeSet<&str> = families().iter().filter(|f| !f.is_refused()).map(Family::arch).collect();
        let twice: Vec<_> = listed.intersection(&covered).collect();
        assert!(twice.is_empty(), "have families and stand in the table: {twice:?}");
        let ours: BTreeSet<&str> = listed.union(&covered).copied().collect();
        let lacking: Vec<_> = known.difference(&ours).collect();
        assert!(lacking.is_empty(), "llama.cpp has, and the table of architectures lacks: {lacking:?}");
        let gone: Vec<_> = ours.difference(&known).collect();
        assert!(gone.is_empty(), "llama.cpp does not know: {gone:?}");
    }
}
