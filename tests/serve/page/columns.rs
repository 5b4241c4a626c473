//! Turn a dial, ask, see both columns, look at the tokens.

use super::{DONE, answer_text, ask, fits, in_sight, open};
use crate::server::{DIAL, Server, with};
use serde_json::json;

#[test]
fn turn_a_dial_ask_and_compare() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.size(1280, 860, false);
    browser.dark(false);
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.select("#render", "text");
    browser.picture("1-welcome");
    // The first dial off, by its button; the second turned by the mouse, three quarters of the way.
    browser.click(".dial .off", 0.5);
    browser.click("#dial-1", 0.75);
    let scale = browser.eval("Number(document.querySelector('#dial-1').value)").as_f64().unwrap();
    assert!((0.8..1.2).contains(&scale), "{scale}");
    assert!(browser.eval("document.querySelector('#dial-1-percent').textContent").as_str().unwrap().contains('%'));
    browser.eval("(() => { const max = document.querySelector('#max'); max.value = 40; })()");

    ask(&mut browser, "How do I make a cup of tea?");
    browser.wait(DONE);
    let (plain, steered) = (answer_text(&mut browser, 0, "plain"), answer_text(&mut browser, 0, "steered"));
    assert!(plain.len() > 40 && steered.len() > 40 && plain != steered, "{plain:?} {steered:?}");
    // What is seen is what the API answers.
    let body = with(
        crate::server::ask("How do I make a cup of tea?", 40),
        json!({"repeat_penalty": 1.1, "steering": [{"vector": DIAL, "scale": scale}]}),
    );
    assert_eq!(server.ok("/v1/chat/completions", &body)["choices"][0]["message"]["content"], steered.as_str());
    fits(&mut browser);
    browser.picture("2-answers");

    // The tokens, by key; through them with the arrows.
    browser.key("t", "KeyT", 84, true);
    browser.wait("document.querySelectorAll('.answer.steered .tok').length === 40 && document.querySelectorAll('.answer.plain .tok').length > 0");
    assert_eq!(answer_text(&mut browser, 0, "steered"), steered);
    let far = browser.eval("Math.max(...[...document.querySelectorAll('.steered .tok')].map(t => Number(t.style.getPropertyValue('--far'))))");
    assert!(far.as_f64().unwrap() > 0.3, "no token moved: {far}");
    browser.eval("document.querySelector('.answer.steered .text').focus()");
    for _ in 0..3 {
        browser.key("ArrowRight", "ArrowRight", 39, false);
    }
    assert_eq!(browser.eval("document.querySelectorAll('.steered .tok[aria-selected=true]').length"), 1);
    assert!(browser.eval("document.querySelector('#panel').textContent").as_str().unwrap().contains("nats"));
    browser.picture("3-tokens");
    browser.dark(true);
    browser.picture("4-tokens-dark");
    browser.key("t", "KeyT", 84, true);

    // On: the conversation goes on in each column; what looks like HTML is text.
    ask(&mut browser, "And <img src=x onerror=alert(1)> coffee?");
    browser.wait(DONE);
    assert_eq!(browser.eval("document.querySelectorAll('.turn').length"), 2);
    assert_eq!(browser.eval("document.querySelectorAll('.turn img').length"), 0);
    browser.picture("5-dark");

    // The last answer again, with the dial on the other side.
    browser.click("#dial-1", 0.25);
    let before = answer_text(&mut browser, 1, "steered");
    browser.click(".turn:last-child .answer.steered .again", 0.5);
    browser.wait(DONE);
    browser.wait(&format!("document.querySelectorAll('.answer.steered .text')[1].textContent !== {}", json!(before)));
    browser.wait(DONE);
    assert!(
        browser
            .eval("document.querySelectorAll('.answer.steered .how')[1].textContent")
            .as_str()
            .unwrap()
            .contains('−')
    );
    browser.click(".turn:last-child .answer.steered .foot button", 0.5);
    browser.wait("document.querySelector('#toast').textContent === 'Copied'");

    // On a phone: one below the other, nothing cut off.
    browser.dark(false);
    browser.size(390, 844, true);
    fits(&mut browser);
    let stacked = "(() => { const [a, b] = document.querySelectorAll('.turn:last-child .answer'); \
                   return a.getBoundingClientRect().bottom <= b.getBoundingClientRect().top; })()";
    assert_eq!(browser.eval(stacked), true);
    browser.eval("document.querySelectorAll('details').forEach(d => { d.open = false; })");
    browser.picture("6-phone");
    // A tapped token's figures are in sight, and so is the message field.
    browser.click("#tokens", 0.5);
    browser.wait("document.querySelectorAll('.turn:last-child .steered .tok').length > 5");
    browser.click(".turn:last-child .steered .tok:nth-child(3)", 0.5);
    browser.wait("document.querySelector('#panel').textContent.includes('nats')");
    for part in ["#panel", "#form", ".tok[aria-selected=true]"] {
        assert!(in_sight(&mut browser, part), "{part}");
    }
    browser.picture("6-phone-tokens");
    browser.click("#tokens", 0.5);
    browser.eval("document.querySelector('#dials-box').open = true");
    browser.picture("7-phone-dials");
    fits(&mut browser);

    // The chat is there after the page is loaded again.
    browser.call("Page.reload", json!({}));
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.wait("document.querySelectorAll('.turn').length === 2");
    assert_eq!(answer_text(&mut browser, 0, "steered"), steered);
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn an_answer_is_stopped_and_a_key_is_asked_for() {
    let Some(server) = Server::start(&["--api-key", "secret"]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelector('#key-box').open");
    browser.eval("document.querySelector('#key').focus()");
    browser.type_text("wrong");
    browser.click("#key-form button", 0.5);
    browser.wait("document.querySelector('#key-box').open && document.querySelector('#key-text').textContent.includes('does not know')");
    browser.eval("document.querySelector('#key').value = ''; document.querySelector('#key').focus()");
    browser.type_text("secret");
    browser.click("#key-form button", 0.5);
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.eval("document.querySelector('#max').value = 3000; document.querySelector('#penalty').value = 1");
    ask(&mut browser, "Write a very long story about the sea.");
    browser.wait("document.querySelector('.answer.steered .text').textContent.length > 10");
    browser.key("Escape", "Escape", 27, false);
    browser.wait(DONE);
    browser.wait("document.querySelector('.answer.plain .figures').textContent.includes('stopped')");
}
