//! The web page in a real browser, used as a person would.

mod browser;
mod chats;
mod columns;
mod gates;
mod looks;
mod thoughts;
mod turns;

use crate::server::Server;
use browser::Browser;
use serde_json::json;

/// No answer is being written.
const DONE: &str = "document.querySelectorAll('.answer').length >= 2 && \
                    [...document.querySelectorAll('.answer')].every(a => a.getAttribute('aria-busy') === 'false')";

/// The page of a server, with its dials. `None` where there is no browser.
fn open(server: &Server) -> Option<Browser> {
    Browser::open(&server.url)
}

/// Types a question and sends it; both columns answer.
fn ask(browser: &mut Browser, question: &str) {
    browser.click("#input", 0.3);
    browser.type_text(question);
    browser.key("Enter", "Enter", 13, false);
    browser.wait("document.querySelectorAll('.answer[aria-busy=true]').length === 2");
}

/// The text of an answer.
fn answer_text(browser: &mut Browser, turn: usize, column: &str) -> String {
    let expression = format!("document.querySelectorAll('.answer.{column} .text')[{turn}].textContent");
    browser.eval(&expression).as_str().unwrap().to_owned()
}

/// Nothing stands out to the side.
fn fits(browser: &mut Browser) {
    let sizes = browser.eval("[document.documentElement.scrollWidth, innerWidth]");
    assert!(sizes[0].as_u64() <= sizes[1].as_u64(), "{sizes}");
}

/// True where an element is inside the window as a whole, and nothing lies over its middle.
fn in_sight(browser: &mut Browser, selector: &str) -> bool {
    let expression = format!(
        "(() => {{ const e = document.querySelector({}); const r = e.getBoundingClientRect(); \
         const top = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2); \
         return r.top >= 0 && r.left >= 0 && r.bottom <= innerHeight && r.right <= innerWidth && e.contains(top); }})()",
        json!(selector)
    );
    browser.eval(&expression) == true
}
