//! A vector with a gate on the page: its opening at each token, by colour and line, and in the figures.

use super::looks::violations;
use super::{DONE, ask, fits, in_sight, open};
use crate::common;
use crate::gates;
use serde_json::{Value, json};

#[test]
fn tokens_are_coloured_by_a_gate() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = gates::start(dir.path(), &[]) else { return };
    let (Some(axe), Some(mut browser)) = (common::axe(), open(&server)) else { return };
    browser.size(1400, 900, false);
    browser.wait("document.querySelectorAll('.dial').length === 5");
    browser.eval("document.querySelector('#max').value = 20");
    // The gated vectors alone: late (a linear gate, in the answer only) and topic.
    let dials = "[...document.querySelectorAll('.dial')]";
    let names = browser.eval(&format!("{dials}.map(d => d.querySelector('.name').textContent)"));
    assert_eq!(names, json!(["held", "late", "misconceptions", "plain-vs-flowery", "topic"]));
    let kinds = browser.eval(&format!("{dials}.map(d => d.querySelector('.where').textContent)"));
    assert_eq!((&kinds[0], &kinds[2]), (&json!("prompt-gate, layer 15"), &json!("layer 15")));
    let turn = |name: &str, scale: f64| {
        format!(
            "(() => {{ const d = {dials}.find(d => d.querySelector('.name').textContent === '{name}'); const n = \
             d.querySelector('.value input'); n.value = {scale}; n.dispatchEvent(new Event('input')); }})()"
        )
    };
    for (name, scale) in
        [("held", 0.0), ("late", 0.1), ("misconceptions", 0.0), ("plain-vs-flowery", 0.0), ("topic", 1.0)]
    {
        browser.eval(&turn(name, scale));
    }
    ask(&mut browser, "How do I make a cup of tea?");
    browser.wait(DONE);
    browser.click("#tokens", 0.5);
    browser.wait("document.querySelectorAll('.answer.steered .tok').length > 5 && document.querySelectorAll('.answer.plain .tok').length > 5");
    browser.wait("!document.querySelector('#colour-box').hidden");
    assert_eq!(
        browser.eval("[...document.querySelector('#colour').options].map(o => o.textContent)"),
        json!(["probability", "gate late", "gate topic"])
    );
    // By probability until it is switched; then each token is as deep as the API tells.
    assert_eq!(browser.eval("document.querySelectorAll('.tok.gate').length"), 0);
    browser.select("#colour", "topic");
    browser.wait("document.querySelectorAll('.answer.steered .tok.gate').length > 5");
    let body = json!({"messages": [{"role": "user", "content": "How do I make a cup of tea?"}], "temperature": 0,
        "repeat_penalty": 1.1, "max_tokens": 20, "logprobs": true,
        "steering": [{"vector": "late", "scale": 0.1}, {"vector": "topic", "scale": 1}]});
    let told = server.ok("/v1/chat/completions", &body)["choices"][0]["logprobs"]["content"].clone();
    let far = |column: &str| {
        format!(
            "[...document.querySelectorAll('.answer.{column} .tok')].map(t => Number(t.style.getPropertyValue('--far')))"
        )
    };
    let steered = browser.eval(&far("steered"));
    let want: Vec<f64> = told.as_array().unwrap().iter().map(|t| t["gates"][1]["open"].as_f64().unwrap()).collect();
    assert_eq!(steered.as_array().unwrap().len(), want.len());
    for (seen, want) in steered.as_array().unwrap().iter().zip(&want) {
        assert!((seen.as_f64().unwrap() - want).abs() < 1e-3, "{steered} {want}");
    }
    // The unsteered answer: where the gate would have opened.
    let plain = browser.eval(&far("plain"));
    assert!(plain.as_array().unwrap().iter().all(|x| x.as_f64().unwrap() > 0.0), "{plain}");
    // Not by colour alone: a line as thick as the gate is open, and the number.
    let line = "parseFloat(getComputedStyle(document.querySelector('.answer.steered .tok')).textDecorationThickness)";
    assert!((browser.eval(line).as_f64().unwrap() - 3.0 * want[0]).abs() < 0.02);
    browser.click(".answer.steered .tok:nth-child(4)", 0.5);
    let number = format!("gate topic {:.2} open", want[3]);
    browser.wait(&format!("document.querySelector('#figures').textContent.includes({})", json!(number)));
    let figures = browser.eval("document.querySelector('#figures').textContent");
    assert!(figures.as_str().unwrap().contains("nats"), "{figures}");
    assert!(
        browser.eval("document.querySelector('.steered .tok:nth-child(4)').title").as_str().unwrap().contains(&number)
    );
    // The gate of the answer behind its first two tokens.
    browser.select("#colour", "late");
    browser.click(".answer.steered .tok:nth-child(1)", 0.5);
    browser.wait("document.querySelector('#figures').textContent.includes('gate late not in its scope')");
    browser.select("#colour", "topic");

    browser.eval(&axe);
    for (width, height, phone, name) in [(1400, 900, false, "wide"), (390, 844, true, "phone")] {
        browser.size(width, height, phone);
        browser.eval("document.querySelectorAll('details').forEach(d => { d.open = innerWidth > 800; })");
        for dark in [false, true] {
            browser.dark(dark);
            browser.click(".answer.steered .tok:nth-child(4)", 0.5);
            browser.wait("document.querySelector('#figures').textContent.includes('gate topic')");
            assert!(
                ["#panel", "#colour", "#form", ".tok[aria-selected=true]"].iter().all(|p| in_sight(&mut browser, p))
            );
            fits(&mut browser);
            browser.picture(&format!("10-{name}-{}-gates", if dark { "dark" } else { "light" }));
            assert_eq!(violations(&mut browser), "", "{name}, dark {dark}");
        }
    }
    // Kept over a reload, and in files.
    browser.size(1400, 900, false);
    browser.call("Page.reload", json!({}));
    browser.wait("document.querySelectorAll('.dial').length === 5");
    browser.click("#tokens", 0.5);
    browser.wait("document.querySelectorAll('.answer.steered .tok.gate').length > 5");
    assert_eq!(browser.eval(&far("steered")), steered);
    assert_eq!(browser.eval(&far("plain")), plain);
    browser.downloads_to(dir.path());
    browser.eval("document.querySelector('#export').click()");
    let file = loop {
        let mut found = std::fs::read_dir(dir.path()).unwrap().filter_map(|f| Some(f.ok()?.path()));
        if let Some(path) = found.find(|p| p.extension().is_some_and(|e| e == "json")) {
            break path;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let chats: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let turn = &chats["chats"][0]["turns"][0];
    assert_eq!(turn["steered"]["tokens"][0]["gates"][0], json!(["late", null]));
    assert_eq!(turn["plain"]["gates"][0][1][0], "topic");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
