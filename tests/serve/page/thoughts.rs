//! Thoughts on the page: folded beside the answer, kept, and never part of what the answer says.

use super::looks::violations;
use super::{DONE, answer_text, ask, open};
use crate::common;
use crate::server::{Server, command};
use crate::thoughts::{TEMPLATE, ending_the_thought};
use serde_json::json;

#[test]
fn thoughts_are_folded_beside_the_answer() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("thinking.jinja");
    std::fs::write(&file, TEMPLATE).unwrap();
    let server = Server::spawn(command(&model).args(["--ctx", "512", "--template"]).arg(&file)).unwrap();
    let (Some(axe), Some(mut browser)) = (common::axe(), open(&server)) else { return };
    browser.size(1400, 900, false);
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.select("#render", "text");
    browser.eval("document.querySelectorAll('.dial .off').forEach(b => b.click())");
    // The model ends its thought soon; what is sent is kept.
    let bias = ending_the_thought(&server)["logit_bias"].clone();
    browser.eval(&format!(
        "(() => {{ const go = window.fetch; window.sent = []; window.fetch = (path, o) => {{ \
         if (path !== 'v1/chat/completions') return go(path, o); const body = JSON.parse(o.body); window.sent.push(body); \
         return go(path, {{ ...o, body: JSON.stringify({{ ...body, repeat_penalty: 2, logit_bias: {bias} }}) }}); }}; \
         document.querySelector('#max').value = 14; }})()"
    ));
    ask(&mut browser, "What is tea for?");
    browser.wait(DONE);
    let body = json!({"messages": [{"role": "user", "content": "What is tea for?"}], "temperature": 0, "max_tokens": 14,
        "repeat_penalty": 2.0, "logit_bias": bias});
    let message = server.ok("/v1/chat/completions", &body)["choices"][0]["message"].clone();
    let (thought, answer) = (message["reasoning_content"].as_str().unwrap(), message["content"].as_str().unwrap());
    assert!(!thought.is_empty() && !answer.is_empty(), "{message}");
    assert_eq!(answer_text(&mut browser, 0, "plain"), answer);
    let folded = "document.querySelector('.answer.plain .thought')";
    assert_eq!(browser.eval(&format!("{folded}.open")), false);
    assert_eq!(browser.eval(&format!("{folded}.querySelector('summary').textContent")), "Thoughts");
    browser.click(".answer.plain .thought summary", 0.5);
    browser.wait(&format!("{folded}.open"));
    let shown = browser.eval(&format!("{folded}.querySelector('.thought-text').textContent"));
    assert_eq!(shown.as_str().unwrap().trim_end(), thought);
    browser.eval(&axe);
    for dark in [false, true] {
        browser.dark(dark);
        browser.picture(if dark { "11-thoughts-dark" } else { "11-thoughts-light" });
        assert_eq!(violations(&mut browser), "", "dark {dark}");
    }
    // The token view has the thought's tokens too.
    browser.click("#tokens", 0.5);
    browser.wait("document.querySelectorAll('.answer.plain .tok').length === 14");
    assert_eq!(browser.eval(&format!("{folded}.hidden")), true);
    browser.click("#tokens", 0.5);

    // The next question: the thought goes back as what it is. Cut within the thought, it is gone on with.
    browser.eval("document.querySelector('#max').value = 1");
    ask(&mut browser, "And coffee?");
    browser.wait(DONE);
    let sent = browser.eval("window.sent.findLast(b => b.messages.length === 3).messages[1]");
    assert_eq!((&sent["content"], sent["reasoning_content"].as_str().unwrap().trim_end()), (&json!(answer), thought));
    let last = "document.querySelector('.turn:last-child .answer.plain";
    browser.wait(&format!("{last} .answer-note').textContent.includes('ended the thoughts')"));
    browser.eval("document.querySelector('#max').value = 14");
    browser.click(".turn:last-child .answer.plain .more", 0.5);
    browser.wait(&format!("{last} .text').textContent.length > 3"));
    browser.wait(DONE);
    let sent = browser.eval("window.sent.at(-1)");
    let resumed = sent["messages"].as_array().unwrap().last().unwrap();
    assert_eq!((&resumed["content"], &sent["continue_final_message"]), (&json!(""), &json!(true)));
    assert!(resumed["reasoning_content"].as_str().is_some_and(|t| !t.is_empty()), "{sent}");

    // There after a reload, and in a file that is read back.
    browser.call("Page.reload", json!({}));
    browser.wait("document.querySelectorAll('.turn').length === 2");
    let kept = browser.eval(&format!("{folded}.querySelector('.thought-text').textContent"));
    assert_eq!((kept, answer_text(&mut browser, 0, "plain")), (shown, answer.to_owned()));
    let text = "(async () => { const c = await import('./js/chat.js'); const d = await import('./js/database.js'); \
                const chats = await d.allChats(); const read = c.chatsFromFile(c.chatsToFile(chats)); \
                return read[0].turns[0].plain.reasoning; })()";
    assert_eq!(browser.eval(text).as_str().unwrap().trim_end(), thought);
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
