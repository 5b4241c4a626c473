//! State shared by the handlers of a server.

use super::engine::Handle;
use super::log::Log;
use super::metrics::Metrics;
use super::models::ModelNames;
use super::vectors::VectorStore;
use crate::engine::job::Client;
use bidpo_core::data::ChatTemplate;
use ggml_grad::llama::Model;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, watch};

/// Limits of a request.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Tokens of a prompt.
    pub max_prompt: usize,
    /// Tokens of an answer.
    pub max_output: usize,
    /// Sequences computed at once or waiting.
    pub places: usize,
}

/// The state.
#[derive(Debug)]
pub(super) struct State {
    pub model: Arc<Model>,
    /// Names that clients may give the model.
    pub names: ModelNames,
    /// When the model was loaded, in seconds since 1970.
    pub created: u64,
    pub template: ChatTemplate,
    /// Text as it stands.
    pub plain: ChatTemplate,
    pub vectors: VectorStore,
    pub n_ctx: usize,
    pub engine: Handle,
    pub places: Arc<Semaphore>,
    pub limits: Limits,
    pub metrics: Arc<Metrics>,
    /// Lines for whoever runs the server.
    pub log: Log,
    /// Unknown fields of a request are refused.
    pub strict_api: bool,
    /// A last message of the assistant is continued where the request does not say.
    pub continue_answers: bool,
    pub keys: Keys,
    /// Names of this server, where it listens for this machine only or asks for no key.
    pub hosts: Option<Vec<String>>,
    /// True once the server is on its way down.
    pub draining: watch::Sender<bool>,
}

impl State {
    /// True once the server is on its way down: it takes no more work.
    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Waits until the server is on its way down.
    pub(crate) async fn drained(&self) {
        // It fails only where there is no sender any more, and `self` is one.
        let _ = self.draining.subscribe().wait_for(|is_draining| *is_draining).await;
    }
}

/// API keys, as their hashes.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|k| Sha256::digest(k.as_bytes()).into()).collect())
    }

    /// True if everyone may come in.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Index of the key that a client sent. A wrong key takes as long as any other: hashes are compared, all of them, in
    /// constant time.
    pub(crate) fn find(&self, shown: &str) -> Option<Client> {
        let shown: [u8; 32] = Sha256::digest(shown.as_bytes()).into();
        let mut found = None;
        for (i, key) in self.0.iter().enumerate() {
            if bool::from(key.as_slice().ct_eq(shown.as_slice())) {
                found = Some(Client::Key(i));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        assert_eq!((keys.find("two"), keys.find("one")), (Some(Client::Key(1)), Some(Client::Key(0))));
        assert_eq!((keys.find(""), keys.find("One"), keys.find("one ")), (None, None, None));
        assert!(Keys::new(&[]).is_empty() && Keys::new(&[]).find("").is_none());
    }
}
