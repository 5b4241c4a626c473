use super::*;
use jiff::Timestamp;
use serde::Deserialize;

fn render(source: &str) -> Result<String, TemplateError> {
    let chat = [Message::user(" a<b \"q\" \n"), Message::assistant("x</think>\n y")];
    JinjaTemplate::new("test", source.to_owned(), "<s>", "</s>")?.render(
        &chat,
        true,
        MessageForm::default(),
        &Map::new(),
    )
}

/// The corpus of tests/gold/templates, rendered by Jinja2.
#[derive(Deserialize)]
struct Corpus {
    chats: Vec<Vec<Message>>,
    templates: Vec<Rendered>,
}

#[derive(Deserialize)]
struct Rendered {
    template: String,
    /// For each chat, with and without a generation prompt: SHA-256 of the text, 16 digits; none where Jinja2 gives an error.
    hashes: Vec<Option<String>>,
}

#[test]
fn templates_render_as_jinja2() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/gold/templates/templates.json");
    let corpus: Corpus = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let clock = Timestamp::from_second(1_720_200_606).unwrap();
    let (mut n, mut wrong) = (0, Vec::new());
    for t in &corpus.templates {
        let template = JinjaTemplate::at("test", t.template.clone(), "<s>", "</s>", Some(clock));
        let cases = corpus.chats.iter().flat_map(|chat| [(chat, true), (chat, false)]);
        for ((chat, prompt), want) in cases.zip(&t.hashes) {
            let got =
                template.as_ref().ok().and_then(|t| t.render(chat, prompt, MessageForm::default(), &Map::new()).ok());
            let hash = got.as_ref().map(|text| ggml_grad::files::sha256_of_bytes(text.as_bytes())[..16].to_owned());
            n += 1;
            if hash != *want {
                wrong.push(format!("{}\n{chat:?} {prompt}: {got:?}", t.template));
            }
        }
    }
    assert!(n > 5000, "{n} renderings");
    assert!(wrong.is_empty(), "{} of {n} differ: {}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
}

/// Random templates with the texts of Jinja2, and the chat they were rendered for.
#[derive(Deserialize)]
struct RandomCorpus {
    chat: Json,
    templates: Vec<RandomTemplate>,
}

#[derive(Deserialize)]
struct RandomTemplate {
    template: String,
    /// None where Jinja2 gives an error.
    text: Option<String>,
}

/// `BIDPO_RANDOM_TEMPLATES` names another file of tests/gold/templates/random_templates.py.
#[test]
fn random_templates_render_as_jinja2() {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/gold/templates/random.json");
    let path = std::env::var("BIDPO_RANDOM_TEMPLATES").unwrap_or_else(|_| own.to_owned());
    let corpus: RandomCorpus = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let variables = Map::from_iter([("messages".to_owned(), corpus.chat)]);
    let render = |source: &str| {
        JinjaTemplate::new("t", source.to_owned(), "<s>", "</s>")?.render(&[], true, MessageForm::default(), &variables)
    };
    let mut wrong = Vec::new();
    for RandomTemplate { template, text } in &corpus.templates {
        let got = render(template);
        if got.as_ref().ok() != text.as_ref() {
            wrong.push(format!("{template:?}\n  Jinja2 {text:?}\n  bidpo  {got:?}"));
        }
    }
    assert!(corpus.templates.len() >= 2000, "{} templates", corpus.templates.len());
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), corpus.templates.len(), wrong.join("\n"));
}

/// With the texts of Jinja2 3.1.6 on Python 3.11.
#[test]
fn long_values_and_slices_of_constants() {
    for (source, text) in [
        (
            "{{ {'b': range(3) | list, 'text': 'line one\\n' ~ 'word ' * 20} | pprint }}",
            "{'b': [0, 1, 2],\n 'text': 'line one\\n'\n         'word word word word word word word word word word word word word '\n         \
             'word word word word word word word '}",
        ),
        (
            "{{ ('word ' * 30) | pprint }}",
            "('word word word word word word word word word word word word word word word '\n 'word word word word word word word \
             word word word word word word word word ')",
        ),
        ("{{ 'a\\u3000b\\u200bc\\u2028' | pprint }}", "'a\\u3000b\\u200bc\\u2028'"),
        ("{{ 'abc'[1:] }}{{ [1, 2, 3][::-1] }}{{ (1, 2, 3)[:2] }}", "bc[3, 2, 1](1, 2)"),
        ("{{ 5[1:] }}|{{ {'a': 1}[1:] }}|{{ 'abc'['a':] }}", "||"),
    ] {
        assert_eq!(render(source).unwrap(), text, "{source}");
    }
    // Worked out while the template is rendered, the same is an error.
    for source in ["{{ 5[1:] ~ bos_token }}", "{% if 5[1:] %}a{% endif %}", "{{ bos_token['a':] }}", "{{ 'abc'[::0] }}"]
    {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn macros_are_no_variables() {
    let source = "{% macro f(x, y=x) %}{{ f(y) if false }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ wanted }}\
                  {% call(a) f(2) %}{{ a }}{% endcall %}{% with p = 1, q = wanted %}{{ p }}{% endwith %}";
    let template = JinjaTemplate::new("t", source.to_owned(), "", "").unwrap();
    assert_eq!(template.variables(), ["wanted"]);
}

#[test]
fn blocks_are_trimmed_as_hugging_face_does() {
    assert_eq!(render("A\n  {% if true %}\nB\n  {% endif %}\nC").unwrap(), "A\nB\nC");
}

#[test]
fn python_methods_and_loop_controls() {
    assert_eq!(render("{{ messages[1].content.split('</think>')[-1].strip() }}").unwrap(), "y");
    assert_eq!(render("{{ messages[0]['content'].strip().startswith('a<') }}").unwrap(), "True");
    assert_eq!(render("{% for m in messages %}{{ m.get('role') }}{% break %}{% endfor %}").unwrap(), "user");
    assert_eq!(render("{{ bos_token }}{{ eos_token }}{{ tools is none }}").unwrap(), "<s></s>True");
}

#[test]
fn json_is_not_escaped_for_html() {
    assert_eq!(render("{{ messages[0].content | tojson }}").unwrap(), r#"" a<b \"q\" \n""#);
    assert_eq!(render("{{ {'a': [1, 2]} | tojson }}").unwrap(), r#"{"a": [1, 2]}"#);
}

#[test]
fn generation_tags_have_no_effect() {
    assert_eq!(render("a {%- generation -%} b {%- endgeneration %} c").unwrap(), "ab c");
    // No tag, and no panic: Jinja2 misses a tag's name.
    for broken in ["a {%} b", "{%}", "{%}{% generation %}b{% endgeneration %}"] {
        assert!(render(broken).is_err(), "{broken}");
    }
}

#[test]
fn errors_are_the_templates_own() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
    assert!(error.contains("roles must alternate") && error.contains("test"), "{error}");
    let error = render("{% if %}").unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { .. }), "{error}");
    // The line is that of the template, not of its rewritten form.
    let error = render("a\n{% if true %}\n\n{{ nothing.at.all }}\n{% endif %}").unwrap_err().to_string();
    assert!(error.contains("line 4"), "{error}");
    let error = render("{% include 'other' %}").unwrap_err().to_string();
    assert!(error.contains("another template"), "{error}");
}

/// What a hostile template tries: each ends with an error, in bounded time and memory.
#[test]
fn work_is_limited() {
    let grow = |first: &str, step: &str, show: &str| {
        format!(
            "{{% set ns = namespace(x={first}) %}}{{% for i in range(100000) %}}{{% set ns.x = {step} %}}{{% endfor %}}{show}"
        )
    };
    let long = |text: &str| format!("{{% set a = 'x ' * 10 ** 6 %}}{text}");
    let templates = [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".to_owned(),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".to_owned(),
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        grow("'a'", "ns.x ~ ns.x", ""),
        grow("'a'", "ns.x + ns.x", ""),
        grow("[1]", "ns.x + ns.x", ""),
        grow("[1]", "ns.x * 2", ""),
        grow("[1]", "[ns.x]", ""),
        grow("[1]", "[ns.x, ns.x]", ""),
        grow("1", "{'a': ns.x, 'b': ns.x}", ""),
        grow("[[1, 2]]", "ns.x | groupby(0) | list", ""),
        grow("[1]", "ns.x | batch(1) | list", ""),
        "{{ 'x' | batch(10 ** 10, 'y') | list }}".to_owned(),
        "{{ [1, 2] | slice(10 ** 10) | list }}".to_owned(),
        "{% for i in range(99999) %}{% set b = [1] | slice(10 ** 5) %}{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% set b = [1] | batch(10 ** 6, 1) %}{% endfor %}".to_owned(),
        "{{ 'x' * 10 ** 10 }}".to_owned(),
        "{{ [1] * 10 ** 9 }}".to_owned(),
        "{{ range(10 ** 9) | list }}".to_owned(),
        "{{ '%*d' % (10 ** 9, 1) }}{{ '%1000000000d' % 1 }}".to_owned(),
        "{{ '%.1000000000f' % 1 }}".to_owned(),
        "{{ '{:1000000000}'.format(1) }}".to_owned(),
        "{{ 'x'.center(10 ** 9) }}".to_owned(),
        "{{ 'x' | center(10 ** 9) }}".to_owned(),
        "{{ 'x' | indent(10 ** 10) }}".to_owned(),
        "{{ '\t'.expandtabs(10 ** 10) }}".to_owned(),
        long("{{ a.replace('x', a) }}"),
        long("{{ a | replace('x', a) }}"),
        long("{{ ([a] * 10 ** 5) | map('upper') | list }}"),
        long("{{ ([a] * 10 ** 5) | join }}"),
        long("{{ a.join(['a'] * 10 ** 5) }}"),
        long("{% for i in range(99999) %}{% set b = a.split(' ') %}{% endfor %}"),
        long("{% for i in range(99999) %}{% set b = a | trim %}{% endfor %}"),
        long("{% for i in range(99999) %}{{ a | length }}{% endfor %}"),
        long("{% for i in range(99999) %}{{ a == a ~ '' }}{% endfor %}"),
        format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(20_000)),
        format!("{{{{ 'a'{} }}}}", ".b".repeat(50_000)),
        format!("{}{}", "{% if 1 %}".repeat(5000), "{% endif %}".repeat(5000)),
        " ".repeat(MAX_SOURCE + 1),
    ];
    for template in &templates {
        let error = render(template).expect_err(&template[..template.len().min(200)]);
        assert!(error.to_string().len() < 1000, "{error}");
    }
    // A chain does not nest.
    let chain = format!("{{% if 0 %}}{}{{% endif %}}done", "{% elif 0 %}".repeat(1000));
    assert_eq!(render(&chain).unwrap(), "done");
    assert_eq!(render(&format!("{{{{ 1{} }}}}", " + 1".repeat(500))).unwrap(), "501");
    // minijinja panics on this one.
    assert_eq!(render("{{ [][::-1] }}").unwrap(), "[]");
    // Jinja2 3.1: list(batch([1, 2, 3], 10 ** 9)) and its kin.
    assert_eq!(render("{{ [1, 2, 3] | batch(10 ** 9) | list }}").unwrap(), "[[1, 2, 3]]");
    assert_eq!(render("{{ [1, 2, 3] | batch(2, 0) | list }}").unwrap(), "[[1, 2], [3, 0]]");
    assert_eq!(render("{{ [] | batch(5) | list }}").unwrap(), "[]");
}

#[test]
fn long_chats_stay_within_the_limits() {
    let chat: Vec<Message> = (0..5000).map(|i| Message::user(format!("message {i} ").repeat(20))).collect();
    let source = "{% for m in messages %}{% if loop.index0 == messages | length - 1 %}last{% endif %}\
                  {{ '<' + m['role'] + '>' + m['content'] | trim + '\n' }}{% endfor %}";
    let template = JinjaTemplate::new("test", source.to_owned(), "", "").unwrap();
    assert!(template.render(&chat, true, MessageForm::default(), &Map::new()).unwrap().len() > 1_000_000);
}
