//! Preference pairs, chat templates, evaluation sets: readers, splits, checks.

mod builtin;
pub mod choice;
mod forms;
mod groups;
pub mod inspect;
pub mod mapping;
mod message;
pub mod mmlu;
mod prefs;
pub mod similar;
pub(crate) mod source;
mod split;
mod split_file;
mod template;
mod text_file;
pub mod truthfulqa;

pub use forms::{ColumnUse, FormUse, Keys, Reading, Role, SkippedRow};
pub use groups::{PairGroups, SplitBy};
pub use message::{Message, Prompt, ToolCall, ToolPart};
pub use prefs::{PreferencePair, PreferenceSet, PrefsError, ReadOptions};
pub use source::{SourceError, stem};
pub use split::{Split, SplitError, permutation, split, split_groups};
pub use split_file::{Part, SplitFile, SplitFileError};
pub use template::{
    AnswerPart, AnswerPiece, CallPart, CallSplitter, CalledFunction, ChatTemplate, ShownChat, ShownText, ShownToken,
    SplitAnswer, TemplateChoice, TemplateError, TemplateSettings, TemplateVariable, Think, ThoughtMarks,
    ThoughtSplitter, TokenizedPair, ToolFormat, WrittenCall, template_variables,
};
pub use text_file::LineError;
pub(crate) use text_file::decode;
