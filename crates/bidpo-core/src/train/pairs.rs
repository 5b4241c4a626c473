//! Preference pairs as tokens, checked before a run.

use crate::data::{ChatTemplate, Message, PreferencePair, Prompt, TemplateError, TokenizedPair};
use ggml_grad::llama::Model;

/// A pair with its name, for messages.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPair {
    /// Id and origin, for example `m017 (prefs.jsonl:17)`.
    pub name: String,
    /// Its tokens.
    pub tokens: TokenizedPair,
}

/// A preference pair that cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The chat template fails on it.
    #[error("{origin}")]
    Template {
        /// File and line.
        origin: String,
        /// The template's reason.
        source: TemplateError,
    },
    /// Longer than the model's context.
    #[error(
        "{origin}: prompt and response have {tokens} tokens, the model's context is {limit}; shorten or remove the pair"
    )]
    TooLong {
        /// File and line.
        origin: String,
        /// Tokens of the prompt with the longer response.
        tokens: usize,
        /// The context that the model was trained with.
        limit: usize,
    },
    /// Both responses are the same tokens.
    #[error("{origin}: chosen and rejected are the same tokens: there is nothing to prefer")]
    Equal {
        /// File and line.
        origin: String,
    },
}

impl PairError {
    /// The reason without the place.
    pub fn reason(&self) -> String {
        match self {
            Self::Template { source, .. } => source.to_string(),
            Self::TooLong { tokens, limit, .. } => {
                format!("prompt and response have {tokens} tokens, the model's context is {limit}")
            }
            Self::Equal { .. } => "chosen and rejected are the same tokens: there is nothing to prefer".to_owned(),
        }
    }
}

/// The prompt with a system prompt before it, in place of its own one.
pub fn with_system_prompt(prompt: &Prompt, system: &str) -> Prompt {
    let system = Message::system(system);
    Prompt::Messages(match prompt {
        Prompt::Text(text) => vec![system, Message::user(text)],
        Prompt::Messages(messages) => {
            std::iter::once(system).chain(messages.iter().filter(|m| !m.is_system()).cloned()).collect()
        }
    })
}

/// Encodes a pair, or a prompt with a chosen answer alone, in the model's tokens and chat format, with `system` as its system prompt if that is given.
///
/// # Errors
/// [`PairError`].
pub fn encode_pair(
    pair: &PreferencePair,
    model: &Model,
    template: &ChatTemplate,
    system: Option<&str>,
) -> Result<NamedPair, PairError> {
    let prompt = system.map_or_else(|| pair.prompt.clone(), |system| with_system_prompt(&pair.prompt, system));
    let origin = || pair.origin.clone();
    let alone = pair.rejected.is_empty();
    let other = if alone { &pair.chosen } else { &pair.rejected };
    let mut tokens = template
        .encode_pair(model, &prompt, &pair.chosen, other)
        .map_err(|source| PairError::Template { origin: origin(), source })?;
    if alone {
        tokens.rejected.clear();
    }
    let longest = tokens.prompt.len() + tokens.chosen.len().max(tokens.rejected.len());
    if longest > model.n_ctx_train() {
        return Err(PairError::TooLong { origin: origin(), tokens: longest, limit: model.n_ctx_train() });
    }
    if tokens.chosen == tokens.rejected {
        return Err(PairError::Equal { origin: origin() });
    }
    Ok(NamedPair { name: format!("{} ({})", pair.id, pair.origin), tokens })
}
