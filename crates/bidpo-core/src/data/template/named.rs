//! Chat formats known by name, as small Jinja templates.
//!
//! None of them writes a BOS: the tokenizer's own setting decides that (see `encode`). The tests compare them with
//! llama.cpp's built-in formats.

/// Name and Jinja source.
pub(super) const TEMPLATES: &[(&str, &str)] = &[
    ("chatml", CHATML),
    ("llama2", LLAMA2),
    ("llama3", LLAMA3),
    ("gemma", GEMMA),
    ("mistral", MISTRAL),
    ("zephyr", ZEPHYR),
    ("phi3", PHI3),
];

const CHATML: &str = "\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Meta's format: a turn is `<s>[INST] user [/INST] answer </s>`, the system text inside the first user message.
const LLAMA2: &str = "\
{%- for m in messages -%}\
{%- if m.role == 'system' -%}{%- set system = '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' -%}\
{{- '[INST] ' + system -}}\
{%- elif m.role == 'user' -%}\
{%- if loop.previtem is defined and loop.previtem.role == 'assistant' -%}{{- bos_token -}}{%- endif -%}\
{%- if not (loop.previtem is defined and loop.previtem.role == 'system') -%}{{- '[INST] ' -}}{%- endif -%}\
{{- m.content + ' [/INST]' -}}\
{%- else -%}{{- ' ' + m.content + ' ' + eos_token -}}{%- endif -%}\
{%- endfor -%}";

const LLAMA3: &str = "\
{%- for m in messages %}\
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}\
{% endfor %}\
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/// Gemma knows no system role: its text goes before the next user message.
const GEMMA: &str = "\
{%- set ns = namespace(system='') -%}\
{%- for m in messages -%}\
{%- if m.role == 'system' -%}{%- set ns.system = ns.system + m.content | trim + '\\n\\n' -%}\
{%- else -%}\
{%- set role = 'model' if m.role == 'assistant' else m.role -%}\
{{- '<start_of_turn>' + role + '\\n' -}}\
{%- if m.role != 'assistant' -%}{{- ns.system -}}{%- set ns.system = '' -%}{%- endif -%}\
{{- m.content | trim + '<end_of_turn>\\n' -}}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}";

/// Mistral's v3 format; the system text goes before the first user message.
const MISTRAL: &str = "\
{%- for m in messages -%}\
{%- if m.role == 'assistant' -%}{{- ' ' + m.content | trim + eos_token -}}\
{%- else -%}\
{%- if not (loop.previtem is defined and loop.previtem.role == 'system') -%}{{- '[INST] ' -}}{%- endif -%}\
{%- if m.role == 'system' -%}{{- m.content + '\\n\\n' -}}{%- else -%}{{- m.content + '[/INST]' -}}{%- endif -%}\
{%- endif -%}\
{%- endfor -%}";

const ZEPHYR: &str = "\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

const PHI3: &str = "\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::super::engine::MessageForm;
    use super::super::jinja::JinjaTemplate;
    use super::TEMPLATES;
    use ggml_grad::llama::apply_builtin_chat_format;
    use serde_json::Map;

    fn render(name: &str, messages: &[Message], generate: bool, eos: &str) -> String {
        let source = TEMPLATES.iter().find(|(n, _)| *n == name).unwrap().1;
        JinjaTemplate::new(name, source.to_owned(), "<s>", eos)
            .unwrap()
            .render(messages, generate, MessageForm::default(), &Map::new())
            .unwrap()
    }

    /// llama.cpp's C++ formats are the oracle, message by message.
    #[test]
    fn equal_to_llama_cpp() {
        let chat = [
            Message::system(" Be brief.\n"),
            Message::user("  What is {{ 2 }} + 2? "),
            Message::assistant("Four."),
            Message::user("And <b>\"ü\" & 'x'</b>?"),
        ];
        // llama.cpp spells these tokens out; our templates take them from the vocabulary.
        for (ours, theirs, eos) in [
            ("chatml", "chatml", ""),
            ("llama3", "llama3", ""),
            ("gemma", "gemma", ""),
            ("phi3", "phi3", ""),
            ("zephyr", "zephyr", "<|endoftext|>"),
            ("mistral", "mistral-v3", "</s>"),
        ] {
            for part in [&chat[..], &chat[1..], &chat[1..2], &chat[..3]] {
                for generate in [true, false] {
                    let pairs: Vec<_> = part.iter().map(|m| (m.role.clone(), m.content.clone())).collect();
                    let expected = apply_builtin_chat_format(theirs, &pairs, generate).unwrap();
                    assert_eq!(render(ours, part, generate, eos), expected, "{ours}, {} messages", part.len());
                }
            }
        }
    }

    /// The string Meta published for Llama 2 (llama.cpp's version leaves two spaces out).
    #[test]
    fn llama2_is_metas() {
        let chat = [Message::system("S"), Message::user("U"), Message::assistant("A"), Message::user("V")];
        assert_eq!(
            render("llama2", &chat, true, "</s>"),
            "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"
        );
    }
}
