//! Tool calls as models write them, and answers read for them.
//!
//! One table covers the families: the marks around calls, and how one call stands between them. A call is JSON with a name and
//! arguments; or a name and behind it the arguments as JSON; or a name and behind it each argument between tags; or a call of
//! Python with named arguments.

mod arguments;
mod grammar;
mod python;
mod read;
mod split;

pub use grammar::CallPart;
pub use split::{AnswerPiece, CallSplitter};

use read::read_calls;
use serde_json::{Map, Value};

/// A family of forms. In patterns a space stands for any white space or none, and `*` for a word.
#[derive(Debug, PartialEq, Eq)]
struct Family {
    /// Before the calls; empty: the answer begins with one.
    open: &'static str,
    /// Behind them.
    close: &'static str,
    call: Call,
}

/// One call of a family.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// An object with a name and arguments, or a list of such objects.
    Json,
    /// A name, and behind it the arguments as a JSON object.
    Named {
        before: &'static str,
        /// Between name and arguments: the first that fits.
        between: &'static [&'static str],
        behind: &'static str,
    },
    /// A call of Python, or a list of such calls.
    Python,
    /// A name, and behind it each argument between tags. Texts stand as they are, other values as JSON.
    Tagged {
        before: &'static str,
        between: &'static str,
        /// Before an argument's name.
        key: &'static str,
        /// Between its name and its value.
        value: &'static str,
        /// Behind its value.
        end: &'static str,
        behind: &'static str,
    },
}

const fn json(open: &'static str, close: &'static str) -> Family {
    Family { open, close, call: Call::Json }
}

const fn python(open: &'static str, close: &'static str) -> Family {
    Family { open, close, call: Call::Python }
}

/// Qwen's tags, which others took over.
const FUNCTION_TAGS: Call = Call::Tagged {
    before: "<function=",
    between: " >",
    key: "<parameter=",
    value: " >",
    end: "</parameter>",
    behind: "</function>",
};

/// The families, by the marks of their calls.
const FAMILIES: [Family; 25] = [
    // Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4.
    json("<tool_call>", "</tool_call>"),
    // Qwen3-Coder, Nemotron 3, Step.
    Family { open: "<tool_call>", close: "</tool_call>", call: FUNCTION_TAGS },
    // GLM 4.5 and later.
    Family {
        open: "<tool_call>",
        close: "</tool_call>",
        call: Call::Tagged {
            before: "",
            between: "",
            key: "<arg_key>",
            value: "</arg_key> <arg_value>",
            end: "</arg_value>",
            behind: "",
        },
    },
    // Seed-OSS.
    Family { open: "<seed:tool_call>", close: "</seed:tool_call>", call: FUNCTION_TAGS },
    // MiniMax M2.
    Family {
        open: "<minimax:tool_call>",
        close: "</minimax:tool_call>",
        call: Call::Tagged {
            before: "<invoke name=\"",
            between: "\" >",
            key: "<parameter name=\"",
            value: "\" >",
            end: "</parameter>",
            behind: "</invoke>",
        },
    },
    // Mistral, as a list.
    json("[TOOL_CALLS]", ""),
    // Mistral since Small 3.2: a name each.
    Family {
        open: "[TOOL_CALLS]",
        close: "",
        call: Call::Named { before: "", between: &["[CALL_ID]*[ARGS]", "[ARGS]", ""], behind: "" },
    },
    // Granite 3, Phi 4.
    json("<|tool_call|>", "<|/tool_call|>"),
    // DeepSeek V3 and R1.
    Family {
        open: "<｜tool▁calls▁begin｜>",
        close: "<｜tool▁calls▁end｜>",
        call: Call::Named {
            before: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            between: &[" ```json"],
            behind: "``` <｜tool▁call▁end｜>",
        },
    },
    // DeepSeek V3.1.
    Family {
        open: "<｜tool▁calls▁begin｜>",
        close: "<｜tool▁calls▁end｜>",
        call: Call::Named {
            before: "<｜tool▁call▁begin｜>",
            between: &["<｜tool▁sep｜>"],
            behind: "<｜tool▁call▁end｜>",
        },
    },
    // DeepSeek V3.2: a tag says whether its value is a text.
    Family {
        open: "<｜DSML｜function_calls>",
        close: "</｜DSML｜function_calls>",
        call: Call::Tagged {
            before: "<｜DSML｜invoke name=\"",
            between: "\" >",
            key: "<｜DSML｜parameter name=\"",
            value: "\" string=\"*\" >",
            end: "</｜DSML｜parameter>",
            behind: "</｜DSML｜invoke>",
        },
    },
    // Kimi K2: the id of a call holds its name.
    Family {
        open: "<|tool_calls_section_begin|>",
        close: "<|tool_calls_section_end|>",
        call: Call::Named {
            before: "<|tool_call_begin|>functions.",
            between: &[":*<|tool_call_argument_begin|>"],
            behind: "<|tool_call_end|>",
        },
    },
    // LFM 2, OLMo 3, Llama 4.
    python("<|tool_call_start|>", "<|tool_call_end|>"),
    python("<function_calls>", "</function_calls>"),
    python("<|python_start|>", "<|python_end|>"),
    // gpt-oss (harmony): the recipient stands before or behind the channel. The call ends the turn.
    Family {
        open: "to=functions.",
        close: "",
        call: Call::Named {
            before: "",
            between: &[
                " <|channel|>commentary <|constrain|>json<|message|>",
                " <|channel|>commentary json<|message|>",
                " <|channel|>commentary<|message|>",
                " <|constrain|>json<|message|>",
                " json<|message|>",
                " <|message|>",
            ],
            behind: "",
        },
    },
    // Functionary 3.1, and Llama 3 where it was told to.
    Family { open: "<function=", close: "</function>", call: Call::Named { before: "", between: &[" >"], behind: "" } },
    // Functionary 3.2: a recipient before each part of an answer; that of text is `all`.
    Family { open: RECIPIENT, close: "", call: Call::Named { before: "", between: &["\n"], behind: "" } },
    // Command R7B and A; Command R.
    json("<|START_ACTION|>", "<|END_ACTION|>"),
    json("Action:", "```"),
    // Nemotron, InternLM.
    json("<TOOLCALL>", "</TOOLCALL>"),
    json("<|action_start|><|plugin|>", "<|action_end|>"),
    // Llama 3, with and without its mark.
    json("<|python_tag|>", ""),
    json("", ""),
    // Llama 3.2 and others, where they were told to.
    python("", ""),
];

/// What stands before a recipient of Functionary 3.2; its generation prompt ends with it.
const RECIPIENT: &str = ">>>";
/// What stands before the text of its answers.
const TEXT_RECIPIENT: &str = ">>>all\n";
/// Llama 3 puts this before some calls, though its template does not.
const OPTIONAL: &str = "<|python_tag|>";
/// Command R puts JSON into a block of code.
const FENCE: &str = "```json";
/// What may stand before a mark and belongs to it: the header of a message in harmony.
const HEADERS: [&str; 4] = ["<|start|>assistant", "<|channel|>commentary", "<|channel|>analysis", "<|end|>"];

/// A call that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenCall {
    /// Name of the function.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// A function that an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub struct CalledFunction {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments, by which texts between tags are told from other values.
    pub parameters: Value,
}

/// The form in which a model writes tool calls.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolFormat {
    family: &'static Family,
    /// How exactly the template writes one.
    form: grammar::Form,
    /// The generation prompt ends with the mark that opens calls.
    opened: bool,
}

impl ToolFormat {
    /// The format in which `text` holds exactly this call, of one argument; `None` where it is none of the table's. `asked`: the
    /// prompt before it.
    pub(super) fn of_written(asked: &str, text: &str, name: &str, arguments: &Map<String, Value>) -> Option<Self> {
        FAMILIES.iter().find_map(|family| {
            let opened = family.open == RECIPIENT && asked.ends_with(RECIPIENT);
            let text = format!("{}{text}", if opened { RECIPIENT } else { "" });
            let body = match family.open {
                "" => text.trim_start(),
                open => &text[text.find(open)?..],
            };
            let read = read_calls(body, &[family], &[])?;
            let same = matches!(read.calls.as_slice(), [one] if one.name == name && one.arguments == *arguments);
            // A header before the mark is part of the call; a mark of the prompt is not.
            let start = match () {
                () if opened => RECIPIENT.len(),
                () if family.has_headers() => 0,
                () => text.len() - body.len(),
            };
            let written = &text[start..text.len() - read.rest.len()];
            let form = grammar::Form::of(family, &read.first, written, name, arguments)?;
            same.then_some(Self { family, form, opened })
        })
    }

    /// Texts that may be control tokens, or hold some, and have to be written out for [`CallSplitter`].
    pub fn marks(&self) -> Vec<&'static str> {
        let mut marks = vec![self.family.open, self.family.close];
        match &self.family.call {
            Call::Json | Call::Python => marks.extend(self.family.open.is_empty().then_some(OPTIONAL)),
            Call::Named { before, between, behind } => {
                marks.extend([*before, *behind]);
                marks.extend(*between);
            }
            Call::Tagged { before, between, key, value, end, behind } => {
                marks.extend([*before, *between, *key, *value, *end, *behind]);
            }
        }
        if self.family.has_headers() {
            marks.extend(HEADERS);
        }
        marks.into_iter().flat_map(|m| m.split([' ', '*'])).filter(|m| !m.is_empty()).collect()
    }

    /// For an answer that is being written, with the functions that it may call.
    pub fn splitter(&self, functions: Vec<CalledFunction>) -> CallSplitter {
        CallSplitter::new(self.family, functions, self.opened)
    }

    /// A grammar's parts for one call of a function.
    pub fn one_call(&self, function: &CalledFunction) -> Vec<CallPart> {
        self.form.one_call(self.family, function)
    }
}

impl Family {
    /// The texts that may stand before the opening mark and belong to it.
    fn headers(&self) -> &'static [&'static str] {
        if self.has_headers() { &HEADERS } else { &[] }
    }

    fn has_headers(&self) -> bool {
        self.open == "to=functions."
    }

    /// Forms to read calls in: this one first, and others with the same mark, which a model may mix up.
    fn readers(&'static self) -> Vec<&'static Self> {
        let others = FAMILIES.iter().filter(|f| f.open == self.open && *f != self);
        std::iter::once(self).chain(others).collect()
    }
}

#[cfg(test)]
mod tests;
