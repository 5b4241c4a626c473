//! The exact form of one call, as a template writes it: for calls that are required.

use super::arguments::Allowed;
use super::python::one_call;
use super::read::{Found, json_prefix};
use super::{Call, CalledFunction, Family};
use serde_json::{Map, Value, json};

/// A part of a call's grammar.
#[derive(Debug, Clone, PartialEq)]
pub enum CallPart {
    /// This text.
    Text(String),
    /// JSON that is valid under the part of `root` at `pointer`.
    Json {
        /// The schema, to whose root references lead.
        root: Value,
        /// A JSON pointer; empty for the whole.
        pointer: String,
    },
    /// A text in which `end` does not occur.
    Free {
        /// What ends it.
        end: String,
    },
    /// One of these texts.
    OneOf(Vec<String>),
    /// These parts, or nothing.
    Optional(Vec<CallPart>),
}

/// Texts around the parts of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    Object {
        before: String,
        keys: [&'static str; 2],
        in_list: bool,
        behind: String,
    },
    Named {
        before: String,
        between: String,
        behind: String,
    },
    Tagged(Tags),
    /// `before` ends with the bracket of a list where there is one.
    Python {
        before: String,
        behind: String,
    },
}

/// Texts around the parts of a call between tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tags {
    before: String,
    between: String,
    value: String,
    end: String,
    behind: String,
}

impl Form {
    /// From `written`, one call with one argument.
    pub(super) fn of(
        family: &Family,
        found: &Found,
        written: &str,
        name: &str,
        arguments: &Map<String, Value>,
    ) -> Option<Self> {
        let (before, rest) = written.split_once(name)?;
        match (found, &family.call) {
            (Found::Object { name, arguments, in_list }, _) => {
                // The mark itself may hold a bracket.
                let at = family.open.len() + written.get(family.open.len()..)?.find(['{', '['])?;
                let (_, behind) = json_prefix(&written[at..])?;
                let keys = [*name, *arguments];
                Some(Self::Object {
                    before: written[..at].to_owned(),
                    keys,
                    in_list: *in_list,
                    behind: behind.to_owned(),
                })
            }
            (Found::Named, _) => {
                let at = rest.find('{')?;
                let (_, behind) = json_prefix(&rest[at..])?;
                let mut between = rest[..at].to_owned();
                // An id is the client's matter.
                if let (Some(from), Some(to)) = (between.find("[CALL_ID]"), between.find("[ARGS]")) {
                    between.replace_range(from..to, "");
                }
                Some(Self::Named { before: before.to_owned(), between, behind: behind.to_owned() })
            }
            (Found::Tagged, Call::Tagged { key, end, .. }) => {
                let (argument, text) = arguments.iter().next()?;
                let (between, rest) = rest.split_once(argument.as_str())?;
                let (value, rest) = rest.split_once(text.as_str()?)?;
                let at = rest.find(end)? + end.len();
                // White space up to the next tag stands between two arguments too.
                let gap = rest[at..].len() - rest[at..].trim_start().len();
                Some(Self::Tagged(Tags {
                    before: before.to_owned(),
                    between: between.strip_suffix(key)?.to_owned(),
                    value: value.to_owned(),
                    end: rest[..at + gap].to_owned(),
                    behind: rest[at + gap..].to_owned(),
                }))
            }
            (Found::Python { .. }, _) => {
                let (_, behind) = one_call(&written[before.len()..])?;
                Some(Self::Python { before: before.to_owned(), behind: behind.to_owned() })
            }
            (Found::Tagged, _) => None,
        }
    }

    /// The parts of one call of a function.
    pub(super) fn one_call(&self, family: &Family, function: &CalledFunction) -> Vec<CallPart> {
        let CalledFunction { name, parameters } = function;
        let whole = |root: Value| CallPart::Json { root, pointer: String::new() };
        match self {
            Self::Object { before, keys: [name_key, arguments], in_list, behind } => {
                let properties = Map::from_iter([
                    ((*name_key).to_owned(), json!({"const": name})),
                    ((*arguments).to_owned(), parameters.clone()),
                ]);
                let mut object = json!({"type": "object", "properties": properties,
                    "required": [name_key, arguments], "additionalProperties": false});
                // References begin at the root.
                for key in ["$defs", "definitions"] {
                    if let Some(definitions) = parameters.get(key) {
                        object[key] = definitions.clone();
                    }
                }
                let (l, r) = if *in_list { ("[", "]") } else { ("", "") };
                vec![CallPart::Text(format!("{before}{l}")), whole(object), CallPart::Text(format!("{r}{behind}"))]
            }
            Self::Named { before, between, behind } => vec![
                CallPart::Text(format!("{before}{name}{between}")),
                whole(parameters.clone()),
                CallPart::Text(behind.clone()),
            ],
            Self::Tagged(tags) => tags.one_call(family, function),
            Self::Python { before, behind } => {
                let inner = keywords(parameters);
                let open = CallPart::Text(format!("{before}{name}("));
                [open].into_iter().chain(inner).chain([CallPart::Text(format!("){behind}"))]).collect()
            }
        }
    }
}

/// True for an argument that a call must have.
fn is_required(parameters: &Value, name: &str) -> bool {
    parameters["required"].as_array().is_some_and(|list| list.iter().any(|r| r == name))
}

/// Named arguments as Python writes them: those that are required, and behind them others. JSON's literals are read as Python's.
fn keywords(parameters: &Value) -> Vec<CallPart> {
    let properties: Vec<&String> = parameters["properties"].as_object().into_iter().flat_map(Map::keys).collect();
    let (required, others): (Vec<_>, Vec<_>) = properties.into_iter().partition(|name| is_required(parameters, name));
    let argument = |comma: bool, name: &str| {
        let pointer = format!("/properties/{}", name.replace('~', "~0").replace('/', "~1"));
        let separator = if comma { ", " } else { "" };
        [CallPart::Text(format!("{separator}{name}=")), CallPart::Json { root: parameters.clone(), pointer }]
    };
    let mut parts: Vec<CallPart> = Vec::new();
    for (i, name) in required.iter().enumerate() {
        parts.extend(argument(i > 0, name));
    }
    if required.is_empty() {
        // Without one that is always there, a comma needs the argument before it.
        return others.iter().enumerate().rev().fold(Vec::new(), |behind, (i, name)| {
            vec![CallPart::Optional(argument(i > 0, name).into_iter().chain(behind).collect())]
        });
    }
    parts.extend(others.iter().map(|name| CallPart::Optional(argument(true, name).to_vec())));
    parts
}

impl Tags {
    fn one_call(&self, family: &Family, function: &CalledFunction) -> Vec<CallPart> {
        let root = &function.parameters;
        let mut parts = vec![CallPart::Text(format!("{}{}{}", self.before, function.name, self.between))];
        for (name, schema) in root["properties"].as_object().into_iter().flatten() {
            let argument = self.argument(family, name, schema, root);
            if is_required(root, name) {
                parts.extend(argument);
            } else {
                parts.push(CallPart::Optional(argument));
            }
        }
        parts.push(CallPart::Text(self.behind.clone()));
        parts
    }

    fn argument(&self, family: &Family, name: &str, schema: &Value, root: &Value) -> Vec<CallPart> {
        let Call::Tagged { key, end, .. } = &family.call else { return Vec::new() };
        let allowed = Allowed::by(schema, root);
        // DeepSeek's tags say which values are texts.
        let value =
            if allowed.texts { self.value.clone() } else { self.value.replace("string=\"true\"", "string=\"false\"") };
        let pointer = format!("/properties/{}", name.replace('~', "~0").replace('/', "~1"));
        let inner = match texts_of(schema, root) {
            Some(texts) => CallPart::OneOf(texts),
            None if allowed.texts && !allowed.others => CallPart::Free { end: (*end).to_owned() },
            None => CallPart::Json { root: root.clone(), pointer },
        };
        vec![CallPart::Text(format!("{key}{name}{value}")), inner, CallPart::Text(self.end.clone())]
    }
}

/// The texts of a schema that lists them.
fn texts_of(schema: &Value, root: &Value) -> Option<Vec<String>> {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.strip_prefix('#')?)?,
        None => schema,
    };
    let texts = |list: &[Value]| list.iter().map(|v| v.as_str().map(str::to_owned)).collect();
    match (&schema["const"], &schema["enum"]) {
        (Value::String(one), _) => Some(vec![one.clone()]),
        (_, Value::Array(list)) => texts(list),
        _ => None,
    }
}
