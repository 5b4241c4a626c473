//! Chat templates, what is typed into a chat, and grammars.

use super::{file, seeds, shown};
use bidpo_core::chat::{Command, Utf8Decoder, is_complete, joined, printable};
use bidpo_core::data::{ChatTemplate, Message, TemplateChoice};
use ggml_grad::llama::{Grammar, Model, ModelParams};
use std::sync::{Arc, OnceLock};

/// A model of some kilobytes, loaded once.
pub(super) fn model() -> &'static Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = file("tiny.gguf", &seeds::models()[0]);
        Model::load(&path, &ModelParams::default()).expect("a model of our own")
    })
}

/// A chat of four turns and the first question, rendered. What comes out has a limit.
pub(super) fn template(bytes: &[u8]) -> bool {
    let path = file("t.jinja", bytes);
    let template = match ChatTemplate::new(model(), &TemplateChoice::File(path)) {
        Ok(template) => template,
        Err(error) => {
            shown(&error.to_string());
            return false;
        }
    };
    template.notes().iter().for_each(|note| shown(note));
    let chat = [
        Message::system("Be brief."),
        Message::user("hello"),
        Message::assistant("good day"),
        Message::user("what is tea?"),
    ];
    let mut accepted = false;
    for messages in [&chat[..], &chat[1..2]] {
        match template.render(messages, true) {
            Ok(text) => {
                assert!(text.len() < 1 << 25, "{} bytes", text.len());
                accepted = true;
            }
            Err(error) => shown(&error.to_string()),
        }
    }
    accepted
}

/// A grammar, with the look ahead that bounds it.
pub(super) fn grammar(bytes: &[u8]) -> bool {
    let started = std::time::Instant::now();
    let read = super::told(Grammar::new(model(), &String::from_utf8_lossy(bytes)));
    assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
    read.is_some()
}

/// A line of a chat: a command or a message.
pub(super) fn chat_line(bytes: &[u8]) -> bool {
    let mut decoder = Utf8Decoder::default();
    let pieces: String = bytes.chunks(3).map(|piece| decoder.push(piece)).collect();
    let text = pieces + &decoder.finish();
    assert_eq!(text, String::from_utf8_lossy(bytes), "pieces of UTF-8");
    is_complete(&text);
    let message = joined(&text);
    shown(&message);
    assert_eq!(printable(&printable(&message)), printable(&message));
    match Command::parse(&text) {
        Ok(_) => true,
        Err(error) => {
            shown(&error.to_string());
            false
        }
    }
}
