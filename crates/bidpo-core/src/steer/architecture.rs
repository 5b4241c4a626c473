//! Names of architectures: those of llama.cpp, which a GGUF model states, and the others under which tools write them into
//! vector files.

use std::collections::BTreeSet;

/// Whether a name that a vector file states is the architecture of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The same architecture, perhaps under another name of it.
    Same,
    /// Not known: nothing is stated, or a name that is no architecture of llama.cpp and none of the other names.
    Unknown,
    /// Another architecture.
    Different,
}

/// llama.cpp's architectures, each with other names of its models, as [`plain`] writes them: Hugging Face's `model_type`, the
/// class in `architectures`, the family's name. A name may stand at several: the converter chooses by the model's settings.
#[rustfmt::skip]
const NAMES: &[(&str, &[&str])] = &[
    ("llama", &["mistral", "mixtral", "codellama", "tinyllama", "smollm", "smollm2", "yi", "vicuna", "zephyr", "internlm", "internlm3", "aquila", "solar", "iquestcoder", "janus", "llava", "voxtral", "ultravox", "exaone", "falcon3", "sarashina2vision", "vllama3"]),
    ("llama4", &["llama4text"]),
    ("deci", &["decilm", "nemotronnas"]),
    ("falcon", &["rw", "refinedweb", "refinedwebmodel"]),
    ("grok", &["grok1"]),
    ("gpt2", &["gptsw3", "rugpt3xl"]),
    ("gptj", &[]),
    ("gptneox", &["pythia"]),
    ("mpt", &[]),
    ("baichuan", &[]),
    ("starcoder", &["gptbigcode"]),
    ("refact", &["gptrefact"]),
    ("bert", &["camembert", "distilbert", "nomicbert", "roberta", "xlmroberta"]),
    ("modern-bert", &["modernbertdecision"]),
    ("nomic-bert", &[]),
    ("nomic-bert-moe", &[]),
    ("neo-bert", &[]),
    ("jina-bert-v2", &["jinabert"]),
    ("jina-bert-v3", &[]),
    ("eurobert", &["jinaembeddingsv5"]),
    ("bloom", &[]),
    ("stablelm", &["stablelmepoch", "stablelmalpha"]),
    ("qwen", &[]),
    ("qwen2", &["qwen15", "qwen25", "qwen25coder", "qwen25math", "qwq", "qwen2audio", "audioflamingo3", "mimo", "dotsocr", "kormo"]),
    ("qwen2moe", &["qwen15moe"]),
    ("qwen2vl", &["qwen25vl", "qwen25omni"]),
    ("qwen3", &["stepvl"]),
    ("qwen3moe", &[]),
    ("qwen3next", &[]),
    ("qwen3vl", &["qwen3asr"]),
    ("qwen3vlmoe", &["qwen3omnimoe"]),
    ("qwen35", &["qwen35text", "minicpmv46"]),
    ("qwen35moe", &["qwen35moetext"]),
    ("clef", &[]),
    ("qwen4exp", &["qwen4exptext"]),
    ("phi2", &["phi", "phi1", "phi15", "phimsft", "mixformersequential"]),
    ("phi3", &["phi35", "phi4", "phi4mini", "phi4multimodal", "phi4forcausallmv"]),
    ("phimoe", &["phi35moe"]),
    ("plamo", &[]),
    ("plamo2", &[]),
    ("plamo3", &[]),
    ("codeshell", &[]),
    ("orion", &[]),
    ("internlm2", &[]),
    ("minicpm", &[]),
    ("minicpm3", &[]),
    ("gemma", &["gemma1", "codegemma"]),
    ("gemma2", &[]),
    ("gemma3", &["gemma3text", "shieldgemma2", "medgemma"]),
    ("gemma3n", &["gemma3ntext"]),
    ("gemma4", &["gemma4text", "gemma4unified"]),
    ("gemma4-assistant", &["gemma4unifiedassistant"]),
    ("gemma-embedding", &["gemma3text", "embeddinggemma"]),
    ("starcoder2", &[]),
    ("mamba", &["falconmamba"]),
    ("mamba2", &[]),
    ("maple", &[]),
    ("jamba", &[]),
    ("falcon-h1", &[]),
    ("xverse", &[]),
    ("command-r", &["cohere", "commandrplus", "c4aicommandr"]),
    ("cohere2", &["commandr7b", "c4aicommandr7b", "commanda"]),
    ("cohere2moe", &[]),
    ("dbrx", &[]),
    ("olmo", &["hfolmo"]),
    ("olmo2", &["olmo1124", "olmo3"]),
    ("olmoe", &[]),
    ("muse-glimmer", &[]),
    ("openelm", &[]),
    ("arctic", &[]),
    ("deepseek", &["deepseekv1", "deepseekmoe"]),
    ("deepseek2", &["deepseekv2", "deepseekv25", "deepseekv3", "deepseekv31", "deepseekr1", "deepseekvlv2", "deepseekocr", "kimik2", "kimik25", "kimivl", "glm4moelite", "youtu", "youtuvl", "sarvammla", "unlimitedocr"]),
    ("deepseek2-ocr", &[]),
    ("deepseek32", &["deepseekv32"]),
    ("deepseek4", &["deepseekv4"]),
    ("chatglm", &["glm", "glm4", "chatglm2", "chatglm3"]),
    ("glm4", &["glm4v", "glmocr"]),
    ("glm4moe", &["glm45", "glm46", "glm4vmoe", "solaropen", "sarvammoe"]),
    ("glm-dsa", &["glmmoedsa", "glm5"]),
    ("bitnet", &[]),
    ("t5", &["mt5", "umt5", "t5with"]),
    ("t5encoder", &["t5", "mt5", "umt5"]),
    ("jais", &[]),
    ("jais2", &[]),
    ("nemotron", &[]),
    ("nemotron_h", &[]),
    ("nemotron_h_moe", &["nemotronh", "nemotronhpuzzle"]),
    ("exaone", &[]),
    ("exaone4", &["exaone45"]),
    ("exaone-moe", &[]),
    ("rwkv6", &[]),
    ("rwkv6qwen2", &[]),
    ("rwkv7", &[]),
    ("arwkv7", &["rwkvhybrid"]),
    ("granite", &[]),
    ("granitemoe", &["granitemoeshared"]),
    ("granitehybrid", &["granitemoehybrid", "bamba"]),
    ("graniteswitch", &[]),
    ("granite_swa", &["granitemoeswa"]),
    ("chameleon", &[]),
    ("wavtokenizer-dec", &[]),
    ("plm", &[]),
    ("bailingmoe", &[]),
    ("bailingmoe2", &["bailingmoev2", "sarvammoe"]),
    ("bailingmoe3", &["bailingmoev3", "bailingmoev3vl"]),
    ("dots1", &[]),
    ("dots3note", &["dots3notetext"]),
    ("arcee", &[]),
    ("afmoe", &[]),
    ("laguna", &[]),
    ("ernie4_5", &["ernie"]),
    ("ernie4_5-moe", &[]),
    ("hunyuan-moe", &["hunyuanv1moe"]),
    ("hunyuan-dense", &["hunyuanv1dense", "hunyuan"]),
    ("hunyuan_vl", &[]),
    ("hy_v3", &[]),
    ("hy_v4", &[]),
    ("smollm3", &[]),
    ("gpt-oss", &["openaimoe"]),
    ("lfm2", &["lfm2bidirectional", "lfm2vl"]),
    ("lfm2moe", &[]),
    ("dream", &[]),
    ("smallthinker", &[]),
    ("llada", &[]),
    ("llada-moe", &[]),
    ("seed_oss", &[]),
    ("grovemoe", &[]),
    ("apertus", &[]),
    ("minimax-01", &["minimax", "minimaxtext01", "minimaxm1"]),
    ("hrm_text", &[]),
    ("minimax-m2", &[]),
    ("minimax-m3", &["minimaxm3vl", "minimaxm3sparse"]),
    ("cogvlm", &[]),
    ("rnd1", &[]),
    ("pangu-embedded", &["panguembed"]),
    ("mistral3", &["mistral", "ministral", "ministral3"]),
    ("eagle3", &[]),
    ("dflash", &["museglimmerassistant"]),
    ("mistral4", &[]),
    ("paddleocr", &["paddleocrvl"]),
    ("mimo2", &["mimov2", "mimov2flash"]),
    ("step35", &["step3p5", "step3p7"]),
    ("spark2_5", &[]),
    ("llama-embed", &["llamabidirectional"]),
    ("maincoder", &[]),
    ("kimi-linear", &[]),
    ("kimi-k3", &[]),
    ("glm5-next", &[]),
    ("talkie", &[]),
    ("mellum", &[]),
    ("nanbeige", &[]),
    ("qwen3tts", &[]),
    ("pockettts", &[]),
];

/// Words by which tools say that they do not know the architecture.
const NOT_STATED: &[&str] = &["", "unknown", "none", "null", "auto", "other", "na"];

/// Ends of the names of classes: `MistralForCausalLM`.
const CLASS_ENDS: &[&str] = &["forcausallm", "forconditionalgeneration", "lmheadmodel"];

/// Lower case, letters and digits only: `Qwen2.5` and `qwen2_5` are one name.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Architectures that go by exactly this name.
fn known(name: &str) -> BTreeSet<&'static str> {
    let found = NAMES.iter().filter(|(own, others)| plain(own) == name || others.contains(&name));
    found.map(|(own, _)| *own).collect()
}

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// One of these architectures.
    Exactly(BTreeSet<&'static str>),
    /// A longer name (`llama-3.2-1b-instruct`) that begins with a name of these.
    Begins(BTreeSet<&'static str>),
    /// None that is known.
    Unknown,
}

fn meaning(stated: &str) -> Meaning {
    // `organisation/model`: the model.
    let name = stated.rsplit('/').next().unwrap_or_default();
    let whole = plain(name);
    let class = CLASS_ENDS.iter().find_map(|end| whole.strip_suffix(end)).unwrap_or(&whole);
    for exact in [&whole[..], class] {
        let found = known(exact);
        if !found.is_empty() {
            return Meaning::Exactly(found);
        }
    }
    // The longest beginning that is a name: without words at the end, then without the digits of a version.
    let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    for n in (1..=words.len()).rev() {
        let start = plain(&words[..n].concat());
        for start in [&start[..], start.trim_end_matches(|c: char| c.is_ascii_digit())] {
            let found = known(start);
            if !found.is_empty() {
                return Meaning::Begins(found);
            }
        }
    }
    Meaning::Unknown
}

/// Nothing is said, or that it is not known.
pub(super) fn is_stated(hint: &str) -> bool {
    !NOT_STATED.contains(&plain(hint).as_str())
}

/// Whether `stated`, what a vector file says (`controlvector.model_hint`), is the architecture `other`: that of a model, or what
/// another file says.
pub fn match_architecture(stated: &str, other: &str) -> Match {
    if !is_stated(stated) || !is_stated(other) {
        return Match::Unknown;
    }
    if plain(stated) == plain(other) {
        return Match::Same;
    }
    let (a, b) = (meaning(stated), meaning(other));
    match (&a, &b) {
        (Meaning::Exactly(x) | Meaning::Begins(x), Meaning::Exactly(y) | Meaning::Begins(y)) if !x.is_disjoint(y) => {
            Match::Same
        }
        (Meaning::Exactly(_), Meaning::Exactly(_)) => Match::Different,
        _ => Match::Unknown,
    }
}

/// llama.cpp's name, where `stated` is a name of exactly one architecture.
pub(super) fn of_llama_cpp(stated: &str) -> Option<&'static str> {
    match meaning(stated) {
        Meaning::Exactly(found) | Meaning::Begins(found) if found.len() == 1 => found.into_iter().next(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_tools() {
        for (stated, architecture) in [
            ("mistral", "llama"),
            ("mistral", "mistral3"),
            ("mixtral", "llama"),
            ("MistralForCausalLM", "llama"),
            ("cohere", "command-r"),
            ("gemma3_text", "gemma3"),
            ("gemma3-text", "gemma3"),
            ("qwen2.5", "qwen2"),
            ("Qwen2.5-7B-Instruct", "qwen2"),
            ("Qwen/Qwen2.5-7B-Instruct", "qwen2"),
            ("qwen2_moe", "qwen2moe"),
            ("qwen2_5_vl", "qwen2vl"),
            ("qwen3.5", "qwen35"),
            ("phi", "phi2"),
            ("phi3.5", "phi3"),
            ("phi4", "phi3"),
            ("llama3.2", "llama"),
            ("Llama-3.1-8B", "llama"),
            ("llama-2", "llama"),
            ("llama4", "llama4"),
            ("gpt_neox", "gptneox"),
            ("deepseek_v3", "deepseek2"),
            ("olmo3", "olmo2"),
            ("LLAMA", "llama"),
        ] {
            assert_eq!(match_architecture(stated, architecture), Match::Same, "{stated} is {architecture}");
            assert_eq!(match_architecture(architecture, stated), Match::Same, "{architecture} is {stated}");
        }
        for (stated, architecture) in [
            ("gemma", "gemma2"),
            ("mistral", "gemma3"),
            ("qwen2", "qwen3"),
            ("cohere2", "command-r"),
            ("phi", "phi3"),
            ("llama4", "llama"),
        ] {
            assert_eq!(match_architecture(stated, architecture), Match::Different, "{stated} is not {architecture}");
        }
        for stated in ["", "unknown", " Unknown", "None", "my-model", "gemma-7b-it", "deepseek-r1-distill-llama-8b"] {
            assert_eq!(match_architecture(stated, "llama"), Match::Unknown, "{stated:?}");
        }
        assert_eq!(of_llama_cpp("cohere"), Some("command-r"));
        assert_eq!((of_llama_cpp("mistral"), of_llama_cpp("unknown")), (None, None));
    }

    /// What `convert_hf_to_gguf.py` writes for each `model_type` of transformers: tests/gold/model_types.py.
    #[test]
    fn every_model_type_of_transformers_is_known() {
        let text = include_str!("../../../../tests/gold/model_types.json");
        let types: std::collections::BTreeMap<String, Vec<String>> = serde_json::from_str(text).unwrap();
        assert!(types.len() > 100);
        let missing: Vec<String> = types
            .iter()
            .flat_map(|(name, architectures)| architectures.iter().map(move |a| (name, a)))
            .filter(|(name, a)| match_architecture(name, a) != Match::Same)
            .map(|(name, a)| format!("{name} is {a}"))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
