//! Scopes that tell the thought of an answer from the rest, under the marks of a template.

use super::{ChatTemplate, TemplateError};
use crate::data::TemplateChoice;
use crate::intervention::{Scope, ThoughtTokens};
use ggml_grad::llama::Model;
use std::sync::Arc;

impl ChatTemplate {
    /// The scope with this template's marks of thoughts, where it reads them; any other scope as it is.
    ///
    /// # Errors
    /// [`TemplateError::NoThoughts`] for a template that marks none, and the tokenizer's.
    pub fn scoped(&self, scope: &Scope, model: &Model) -> Result<Scope, TemplateError> {
        if !scope.reads_thoughts() {
            return Ok(scope.clone());
        }
        let marks = self.marks.as_ref();
        let missing = || TemplateError::NoThoughts { name: self.name.clone(), scope: scope.to_string() };
        let marks = marks.ok_or_else(missing)?;
        let thoughts = match self.known.thoughts.get() {
            Some(known) => Arc::clone(known),
            None => {
                let made = Arc::new(ThoughtTokens::new(&marks.open, &marks.close, model)?);
                Arc::clone(self.known.thoughts.get_or_init(|| made))
            }
        };
        Ok(scope.clone().with_thoughts(thoughts))
    }

    /// As [`ChatTemplate::scoped`], by the template of the prompts, or by the model's own where these have none.
    ///
    /// # Errors
    /// As there, and as [`ChatTemplate::new`].
    pub fn scoped_by(template: Option<&Self>, scope: &Scope, model: &Model) -> Result<Scope, TemplateError> {
        match template {
            Some(template) => template.scoped(scope, model),
            None if scope.reads_thoughts() => Self::new(model, &TemplateChoice::Auto)?.scoped(scope, model),
            None => Ok(scope.clone()),
        }
    }
}
