//! Chats: Markdown that is shown and never run, files, names, search.

use super::open;
use crate::server::Server;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// An answer that tries everything.
const TEXT: &str = "# Steps\n\nBoil **water** and *wait*:\n\n1. pour\n2. drink `tea`\n\n```python\nprint(\"<b>hot</b>\")\n```\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n\
    > quoted\n\n~~old~~ &amp; &copy; <img src=x onerror=alert(1)> <script>alert(2)</script>\n\n\
    [good](https://example.org/a) [bad](javascript:alert(3)) [data](data:text/html,x) ![picture](https://example.org/p.png)";

fn chat(id: &str, title: &str, question: &str, text: &str) -> Value {
    let answer = json!({"text": text, "tokens": [], "finish": "stop", "seconds": 1, "error": null, "scores": null});
    let spec = json!({"steering": [{"vector": "gone", "scale": 1}], "scope": "all", "words": "gone +1.00"});
    json!({"id": id, "title": title, "named": !title.is_empty(), "changed": 1, "turns": [
        {"question": question, "system": "", "spec": spec, "plain": answer, "steered": answer}]})
}

#[test]
fn chats_are_imported_shown_named_found_and_exported() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.size(1400, 900, false);
    browser.wait("document.querySelectorAll('.dial').length === 2");
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        let path = dir.path().join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path
    };
    let chats =
        json!([chat("1", "", "How do I make tea?", TEXT), chat("2", "Bridges", "<b>Which</b> bridge?", "Of oak.")]);
    let good = write("good.json", &json!({"format": "bidpo-chats", "version": 1, "chats": chats}));
    browser.eval("document.querySelector('#chats-box').open = true");
    browser.choose_files("#import-files", &[&good]);
    browser.wait("document.querySelector('#toast').textContent === '2 chats imported'");
    browser.choose_files("#import-files", &[&good]);
    browser.wait("document.querySelector('#toast').textContent.includes('here already')");

    // What is no such file is refused with its place.
    let wrong = json!({"format": "bidpo-chats", "version": 1, "chats": [{"id": "3", "turns": [{"question": 7}]}]});
    for (value, said) in [
        (json!({"chats": []}), "no file of chats"),
        (json!({"format": "bidpo-chats", "version": 9}), "version 9"),
        (wrong, "chats[0].turns[0].spec must be an object"),
    ] {
        let path = write("wrong.json", &value);
        browser.choose_files("#import-files", &[&path]);
        browser.wait(&format!("document.querySelector('#toast').textContent.includes({})", json!(said)));
    }
    assert_eq!(browser.eval("document.querySelectorAll('#chats .open').length"), 2);

    // Markdown as elements; HTML as text; no address but of the web.
    browser.click("#chats li:nth-child(1) .open", 0.3);
    browser.wait("document.querySelectorAll('.turn').length === 1");
    let has = |selector: &str| format!("document.querySelectorAll('.answer.plain .text {selector}').length");
    for (selector, n) in [
        ("h3", 1),
        ("strong", 1),
        ("em", 1),
        ("ol > li", 2),
        ("li code", 1),
        (".code pre code", 1),
        ("td", 2),
        ("td.to-right", 1),
        ("blockquote", 1),
        ("s", 1),
        ("a", 1),
        ("img", 0),
        ("script", 0),
        ("b", 0),
    ] {
        assert_eq!(browser.eval(&has(selector)), n, "{selector}");
    }
    let text = browser.eval("document.querySelector('.answer.plain .text').textContent");
    let text = text.as_str().unwrap();
    for kept in [
        "print(\"<b>hot</b>\")",
        "& © <img src=x onerror=alert(1)>",
        "<script>alert(2)</script>",
        "javascript:alert(3)",
        "picture",
    ] {
        assert!(text.contains(kept), "{kept} in {text}");
    }
    let link = browser.eval(
        "(() => { const a = document.querySelector('.answer.plain .text a'); return [a.href, a.rel, a.target]; })()",
    );
    assert_eq!(link, json!(["https://example.org/a", "noopener noreferrer nofollow", "_blank"]));
    browser.eval("navigator.clipboard.writeText = async (text) => { globalThis.copied = text; }");
    browser.click(".answer.plain .code button", 0.5);
    browser.wait("globalThis.copied === 'print(\"<b>hot</b>\")\\n'");
    browser.picture("8-markdown");
    // The browser itself refuses text as HTML.
    let refused = browser.eval("(() => { try { document.createElement('p').innerHTML = '<b>x</b>'; return false; } catch { return true; } })()");
    assert_eq!(refused, true);
    browser.complaints.retain(|c| !c.contains("TrustedHTML"));
    // As plain text, exactly what the model wrote.
    browser.select("#render", "text");
    assert_eq!(browser.eval("document.querySelector('.answer.plain .text').textContent"), TEXT);
    browser.select("#render", "markdown");

    // A new name, found by search, there after a reload.
    browser.click("#chats li:nth-child(1) .dots", 0.5);
    browser.click("#chats .menu button:nth-child(1)", 0.5);
    browser.eval("document.querySelector('#chats li input').value = ''");
    browser.type_text("Hot drinks");
    browser.key("Enter", "Enter", 13, false);
    browser.wait("document.querySelector('#chats').textContent.includes('Hot drinks')");
    browser.click("#search", 0.5);
    browser.type_text("OAK");
    browser.wait("document.querySelectorAll('#chats .open').length === 1");
    assert_eq!(browser.eval("document.querySelector('#chats .open').textContent"), "Bridges");
    browser.call("Page.reload", json!({}));
    browser.wait(
        "document.querySelectorAll('#chats .open').length === 2 && document.querySelectorAll('.turn').length === 1",
    );

    // Exported: what was imported, with the new name.
    let files = dir.path().join("out");
    std::fs::create_dir(&files).unwrap();
    browser.downloads_to(&files);
    browser.eval("document.querySelector('#chats-box').open = true");
    browser.click("#export", 0.5);
    let start = Instant::now();
    let exported: Value = loop {
        let json = std::fs::read_dir(&files)
            .unwrap()
            .map(|f| f.unwrap().path())
            .find(|p| p.extension().is_some_and(|e| e == "json"));
        if let Some(value) = json.and_then(|p| serde_json::from_slice(&std::fs::read(p).unwrap()).ok()) {
            break value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "no file was written");
        std::thread::sleep(Duration::from_millis(50));
    };
    let first = exported["chats"].as_array().unwrap().iter().find(|c| c["id"] == "1").unwrap();
    assert_eq!((&first["title"], &first["turns"][0]["plain"]["text"]), (&json!("Hot drinks"), &json!(TEXT)));
    assert_eq!(exported["chats"].as_array().unwrap().len(), 2);

    // Deleted, and back.
    browser.click("#chats li:nth-child(1) .dots", 0.5);
    browser.click("#chats .menu .drop", 0.5);
    browser.wait("document.querySelectorAll('#chats .open').length === 1");
    browser.click("#toast button", 0.5);
    browser.wait("document.querySelectorAll('#chats .open').length === 2");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn chats_of_the_older_page_are_kept() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelectorAll('.dial').length === 2");
    // As 0.2.0 kept them: one list, without names and times.
    let old = json!([{"id": "1790000000000", "title": "What is tea?", "turns": [{
        "question": "What is tea?", "system": "", "spec": {"steering": [], "scope": "all", "words": "all dials at 0"},
        "plain": {"text": "A drink.", "tokens": [{"id": 5, "text": "A drink.", "logprob": -1, "top": [["A", -1]]}], "finish": "stop",
                  "seconds": 1, "error": null, "scores": null},
        "steered": {"text": "", "tokens": [], "finish": null, "seconds": 0, "error": "the queue is full", "scores": null}}]}]);
    browser.eval(&format!("localStorage.setItem('bidpo.chats', {})", json!(old.to_string())));
    browser.call("Page.reload", json!({}));
    browser.wait("document.querySelectorAll('#chats .open').length === 1");
    browser.eval("document.querySelector('#chats-box').open = true");
    browser.click("#chats .open", 0.5);
    browser.wait("document.querySelector('.answer.plain .text').textContent.trim() === 'A drink.'");
    assert_eq!(browser.eval("localStorage.getItem('bidpo.chats')"), Value::Null);
}
