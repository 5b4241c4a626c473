//! Turns that are changed: edited, deleted, too long, interrupted, waiting.

use super::{DONE, answer_text, ask, open};
use crate::server::Server;
use serde_json::json;

/// A question long before its answers end.
const LONG: &str = "Write a very long story about the sea.";

#[test]
fn turns_are_edited_deleted_and_retried() {
    let Some(server) = Server::start(&["--ctx", "512"]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.size(1400, 900, false);
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.eval("document.querySelector('#max').value = 12");
    ask(&mut browser, "What is a violin?");
    browser.wait(DONE);

    // Too long for the context: the gauge says so before, the answers after.
    browser.click("#input", 0.3);
    browser.type_text(&"word ".repeat(600));
    browser.wait("document.querySelector('#gauge.over').textContent.includes('too many')");
    browser.key("Enter", "Enter", 13, false);
    browser.wait("[...document.querySelectorAll('.turn:last-child .wrong')].every(w => !w.hidden)");
    let wrong = browser.eval("document.querySelector('.turn:last-child .wrong').textContent");
    let wrong = wrong.as_str().unwrap();
    assert!(wrong.contains("512 with its answer (--ctx)") && wrong.contains("Edit the message"), "{wrong}");
    browser.wait(DONE);

    // The chat goes on all the same, without that turn.
    ask(&mut browser, "And a cello?");
    browser.wait(DONE);
    assert!(answer_text(&mut browser, 2, "plain").len() > 10);
    // The gauge tells what the server counts for the chat that the next request would send.
    let used = "(async () => { const t = (i, c) => document.querySelectorAll(`.answer.${c} .text`)[i].textContent; \
         const count = async (c) => (await (await fetch('tokenize', {method: 'POST', headers: {'Content-Type': 'application/json'}, \
           body: JSON.stringify({messages: [{role: 'user', content: 'What is a violin?'}, {role: 'assistant', content: t(0, c)}, \
           {role: 'user', content: 'And a cello?'}, {role: 'assistant', content: t(2, c)}]})})).json()).count; \
         return Math.max(await count('plain'), await count('steered')); })()";
    let used = browser.eval(used);
    browser.wait(&format!("document.querySelector('#gauge').getAttribute('aria-valuenow') === '{used}'"));

    // The long one edited: answered; what follows is marked.
    browser.click(".turn:nth-child(2) .ask-tools button", 0.5);
    browser.eval("document.querySelector('.edit textarea').value = ''");
    browser.type_text("What is a drum?");
    browser.key("Enter", "Enter", 13, false);
    browser.wait(DONE);
    browser.wait("[...document.querySelectorAll('.turn:nth-child(2) .text')].every(t => t.textContent.length > 10)");
    let third = "document.querySelector('.turn:nth-child(3) .answer-note').textContent";
    assert!(browser.eval(third).as_str().unwrap().contains("before a turn above was changed"));
    // In the token view the marked turn has no colours; it has them after a retry.
    browser.click("#tokens", 0.5);
    browser.wait("document.querySelectorAll('.turn:nth-child(2) .tok').length > 5");
    assert_eq!(browser.eval("document.querySelectorAll('.turn:nth-child(3) .tok').length"), 0);
    browser.click(".turn:nth-child(3) .ask-tools button:nth-child(2)", 0.5);
    browser.wait("document.querySelectorAll('.turn:nth-child(3) .tok').length > 5");
    browser.click("#tokens", 0.5);

    // Deleted, and back.
    browser.click(".turn:nth-child(2) .ask-tools button:nth-child(3)", 0.5);
    browser.wait("document.querySelectorAll('.turn').length === 2");
    assert!(
        browser
            .eval("document.querySelector('.turn:nth-child(2) .answer-note').textContent")
            .as_str()
            .unwrap()
            .contains("above")
    );
    browser.click("#toast button", 0.5);
    browser.wait("document.querySelectorAll('.turn').length === 3");
    assert_eq!(browser.eval(third), "");
    browser.click(".turn:nth-child(1) .ask-tools button:nth-child(3)", 0.5);
    browser.wait("document.querySelectorAll('.turn').length === 2");
    assert!(browser.complaints.iter().all(|c| c.contains("400")), "{:?}", browser.complaints);
}

#[test]
fn nothing_is_lost_by_a_reload_or_an_early_enter() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.eval(
        "(() => { const m = document.querySelector('#max'); m.value = 3000; m.dispatchEvent(new Event('change')); \
                  document.querySelector('#penalty').value = 1; })()",
    );
    browser.select("#render", "text");
    ask(&mut browser, LONG);
    browser.wait("[...document.querySelectorAll('.text')].every(t => t.textContent.length > 60)");
    // Enter during an answer: the message waits, and comes back when the answers are stopped.
    browser.click("#input", 0.3);
    browser.type_text("And the shore?");
    browser.key("Enter", "Enter", 13, false);
    browser.wait("document.querySelector('#queue').textContent.includes('And the shore?')");
    browser.key("Escape", "Escape", 27, false);
    browser.wait(DONE);
    assert_eq!(browser.eval("document.querySelector('#input').value"), "And the shore?");
    browser.eval("document.querySelector('#input').value = ''");

    // A reload in the middle: the answers are there as far as they came, and are continued.
    browser.click(".ask-tools button:nth-child(2)", 0.5);
    browser.wait("document.querySelectorAll('.answer[aria-busy=true]').length === 2");
    browser.wait("[...document.querySelectorAll('.text')].every(t => t.textContent.length > 60)");
    let seen = answer_text(&mut browser, 0, "steered");
    browser.call("Page.reload", json!({}));
    browser.wait("document.querySelectorAll('.dial').length === 2");
    let after = answer_text(&mut browser, 0, "steered");
    assert!(after.starts_with(&seen), "{seen:?} {after:?}");
    let figures = browser.eval("document.querySelector('.answer.steered .figures').textContent");
    assert!(figures.as_str().unwrap().contains("interrupted"), "{figures}");
    browser.eval("document.querySelector('#max').value = 10");
    browser.click(".answer.steered .more", 0.5);
    browser.wait(&format!("document.querySelector('.answer.steered .text').textContent.length > {}", after.len()));
    browser.wait(DONE);
    let more = answer_text(&mut browser, 0, "steered");
    assert!(more.starts_with(&after), "{after:?} {more:?}");
    // It is the continuation that the API gives.
    let continued = server.ok(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": after}], "temperature": 0,
                "max_tokens": 10, "repeat_penalty": 1.1, "steering": browser.eval("(async () => { const open = indexedDB.open('bidpo'); \
                await new Promise(d => open.onsuccess = d); const all = open.result.transaction('chats').objectStore('chats').getAll(); \
                await new Promise(d => all.onsuccess = d); return all.result[0].turns[0].spec.steering; })()")}),
    );
    assert_eq!(continued["choices"][0]["message"]["content"].as_str().unwrap(), &more[after.len()..]);

    // A message that waits is sent when the answers are there.
    browser.eval("document.querySelector('#max').value = 40");
    ask(&mut browser, "What is a gull?");
    browser.click("#input", 0.3);
    browser.type_text("What is a crab?");
    browser.key("Enter", "Enter", 13, false);
    browser.wait("document.querySelectorAll('.turn').length === 3");
    browser.wait(DONE);
    assert_eq!(browser.eval("document.querySelector('.turn:last-child .ask').textContent"), "What is a crab?");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn one_place_and_a_server_that_goes_away() {
    // A single place: the second column waits for it instead of being refused.
    let Some(mut server) = Server::start(&["--slots", "1", "--queue", "0"]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.eval("document.querySelector('#max').value = 30");
    ask(&mut browser, "What is a violin?");
    browser.wait("[...document.querySelectorAll('.answer-note')].some(n => n.textContent.includes('waiting'))");
    browser.wait(DONE);
    assert!(answer_text(&mut browser, 0, "plain").len() > 20 && answer_text(&mut browser, 0, "steered").len() > 20);
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    browser.click("#input", 0.3);
    browser.type_text("And a cello?");
    browser.key("Enter", "Enter", 13, false);
    browser.wait(
        "[...document.querySelectorAll('.turn:last-child .wrong')].every(w => w.textContent.includes('bidpo serve'))",
    );
}
