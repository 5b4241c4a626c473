//! The output of a response: thoughts, text and calls as items, and the events that tell of them.

use serde_json::{Value, json};

/// What an item that is being written holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Thought,
    Text,
}

impl Part {
    fn prefix(self) -> &'static str {
        match self {
            Self::Thought => "rs",
            Self::Text => "msg",
        }
    }

    /// The kind of text, in the names of events and parts.
    fn word(self) -> &'static str {
        match self {
            Self::Thought => "reasoning_text",
            Self::Text => "output_text",
        }
    }

    fn content(self, text: &str, logprobs: &[Value]) -> Value {
        match self {
            Self::Thought => json!({"type": "reasoning_text", "text": text}),
            Self::Text => json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}),
        }
    }
}

/// An item that is being written.
#[derive(Debug)]
struct Open {
    part: Part,
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl Open {
    fn item(&self, status: &str, content: Vec<Value>) -> Value {
        match self.part {
            Part::Thought => {
                json!({"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            Part::Text => {
                json!({"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content})
            }
        }
    }
}

/// The items of a response, in order.
#[derive(Debug, Default)]
pub(super) struct Items {
    done: Vec<Value>,
    open: Option<Open>,
}

/// An id of its own.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}_{:032x}", rand::random::<u128>())
}

impl Items {
    /// Adds text to the item of its kind, with the log-probabilities that come with it, and tells of it.
    pub(super) fn write(&mut self, part: Part, text: &str, logprobs: Vec<Value>, events: &mut Vec<Value>) {
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        if self.open.as_ref().is_some_and(|open| open.part != part) {
            self.close("completed", events);
        }
        let index = self.done.len();
        let open = self.open.get_or_insert_with(|| {
            let open = Open { part, id: id(part.prefix()), text: String::new(), logprobs: Vec::new() };
            let item = open.item("in_progress", Vec::new());
            events.push(json!({"type": "response.output_item.added", "output_index": index, "item": item}));
            events.push(json!({"type": "response.content_part.added", "item_id": open.id, "output_index": index,
                "content_index": 0, "part": part.content("", &[])}));
            open
        });
        open.text += text;
        let mut event = json!({"type": format!("response.{}.delta", part.word()), "item_id": open.id, "output_index": index,
            "content_index": 0, "delta": text});
        if part == Part::Text {
            event["logprobs"] = json!(logprobs);
        }
        open.logprobs.extend(logprobs);
        events.push(event);
    }

    /// Ends the item that is being written.
    pub(super) fn close(&mut self, status: &str, events: &mut Vec<Value>) {
        let Some(open) = self.open.take() else { return };
        let index = self.done.len();
        let place = json!({"item_id": open.id, "output_index": index, "content_index": 0});
        let content = open.part.content(&open.text, &open.logprobs);
        let mut text = place.clone();
        text["type"] = json!(format!("response.{}.done", open.part.word()));
        text["text"] = json!(open.text);
        if open.part == Part::Text {
            text["logprobs"] = json!(open.logprobs);
        }
        let mut part = place;
        part["type"] = json!("response.content_part.done");
        part["part"] = content.clone();
        let item = open.item(status, vec![content]);
        events.extend([text, part]);
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
        self.done.push(item);
    }

    /// Adds a call, as a chat tells it.
    pub(super) fn call(&mut self, call: &Value, events: &mut Vec<Value>) {
        self.close("completed", events);
        let index = self.done.len();
        let arguments = &call["function"]["arguments"];
        let item = |arguments: &Value, status: &str| {
            json!({"type": "function_call", "call_id": call["id"], "name": call["function"]["name"],
                "arguments": arguments, "status": status})
        };
        let id = id("fc");
        let with_id = |mut item: Value| {
            item["id"] = json!(id);
            item
        };
        let (begun, ended) = (with_id(item(&json!(""), "in_progress")), with_id(item(arguments, "completed")));
        events.push(json!({"type": "response.output_item.added", "output_index": index, "item": begun}));
        events.push(json!({"type": "response.function_call_arguments.delta", "item_id": id, "output_index": index, "delta": arguments}));
        events.push(json!({"type": "response.function_call_arguments.done", "item_id": id, "output_index": index,
            "name": call["function"]["name"], "arguments": arguments}));
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": ended}));
        self.done.push(ended);
    }

    /// The items that are complete.
    pub(super) fn output(&self) -> Value {
        json!(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_tell_what_the_items_hold() {
        let (mut items, mut events) = (Items::default(), Vec::new());
        items.write(Part::Thought, "So", vec![], &mut events);
        items.write(Part::Thought, ".", vec![], &mut events);
        items.write(Part::Text, "Yes", vec![json!({"token": "Yes"})], &mut events);
        items.write(Part::Text, "", vec![], &mut events);
        items.call(&json!({"id": "a", "function": {"name": "f", "arguments": "{}"}}), &mut events);
        items.close("completed", &mut events);
        let output = items.output();
        let kinds: Vec<&str> = output.as_array().unwrap().iter().map(|i| i["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["reasoning", "message", "function_call"]);
        assert_eq!(
            (&output[0]["content"][0]["text"], &output[1]["content"][0]["text"]),
            (&json!("So."), &json!("Yes"))
        );
        assert_eq!(output[1]["content"][0]["logprobs"], json!([{"token": "Yes"}]));
        let of = |kind: &str| events.iter().filter(|e| e["type"] == kind).cloned().collect::<Vec<_>>();
        let done = of("response.output_item.done");
        assert_eq!(done.iter().map(|e| e["item"].clone()).collect::<Vec<_>>(), *output.as_array().unwrap());
        assert_eq!(of("response.output_item.added").len(), 3);
        assert_eq!(
            (of("response.reasoning_text.delta").len(), of("response.output_text.done")[0]["text"].clone()),
            (2, json!("Yes"))
        );
        assert!(done.iter().enumerate().all(|(i, e)| e["output_index"] == i));
    }
}
