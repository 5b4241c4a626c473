//! The page in four sizes and themes: nothing is cut off, and axe-core finds no violation.

use super::browser::Browser;
use super::{DONE, ask, fits, in_sight, open};
use crate::common;
use crate::server::Server;

/// What axe-core finds wrong, in words.
pub fn violations(browser: &mut Browser) -> String {
    let found = browser.eval(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => v.id + ': ' + v.help + ' ' + \
         v.nodes.map(n => n.target.join(' ') + ' (' + n.failureSummary + ')').join('; ')).join('\\n'))",
    );
    found.as_str().unwrap().to_owned()
}

#[test]
fn four_sizes_and_themes() {
    let Some(axe) = common::axe() else { return };
    let Some(server) = Server::start(&[]) else { return };
    let Some(mut browser) = open(&server) else { return };
    browser.wait("document.querySelectorAll('.dial').length === 2");
    browser.eval("document.querySelector('#max').value = 24");
    for (width, height, phone, name) in [(1400, 900, false, "wide"), (390, 844, true, "phone")] {
        browser.size(width, height, phone);
        for dark in [false, true] {
            browser.dark(dark);
            let theme = if dark { "dark" } else { "light" };
            browser.eval("document.querySelectorAll('details').forEach(d => { d.open = innerWidth > 800; })");
            browser.click("#new", 0.5);
            browser.eval(&axe);
            // Empty; with two turns, one of them being edited, and tokens; with a dialog.
            assert_eq!(violations(&mut browser), "", "{name} {theme}, empty");
            ask(&mut browser, "How do I make a cup of tea? Answer in two steps.");
            browser.wait(DONE);
            browser.picture(&format!("9-{name}-{theme}-answers"));
            assert_eq!(violations(&mut browser), "", "{name} {theme}, answers");
            browser.click("#tokens", 0.5);
            browser.wait("document.querySelectorAll('.answer.steered .tok').length > 5");
            browser.click(".answer.steered .tok:nth-child(4)", 0.5);
            browser.wait("document.querySelector('#panel').textContent.includes('nats')");
            browser.click(".ask-tools button", 0.5);
            browser.wait("document.querySelector('.edit textarea') === document.activeElement");
            assert!(in_sight(&mut browser, "#form") && in_sight(&mut browser, "#panel"), "{name} {theme}");
            fits(&mut browser);
            browser.picture(&format!("9-{name}-{theme}-tokens"));
            assert_eq!(violations(&mut browser), "", "{name} {theme}, tokens");
            browser.key("Escape", "Escape", 27, false);
            browser.click("#tokens", 0.5);
            // All settings open: they scroll, and the message field stays.
            browser.eval("document.querySelectorAll('details').forEach(d => { d.open = true; })");
            browser.eval("document.querySelector('#chats .dots').click()");
            assert!(in_sight(&mut browser, "#form"), "{name} {theme}");
            fits(&mut browser);
            browser.picture(&format!("9-{name}-{theme}-settings"));
            assert_eq!(violations(&mut browser), "", "{name} {theme}, settings");
            browser.eval("document.querySelector('#keys').showModal()");
            assert_eq!(violations(&mut browser), "", "{name} {theme}, keys");
            browser.eval("document.querySelector('#keys').close()");
        }
    }
    // With the keyboard of a phone open, little is left: the message field still stands at the bottom.
    browser.size(390, 420, true);
    browser.eval("document.querySelectorAll('details').forEach(d => { d.open = false; })");
    assert!(in_sight(&mut browser, "#form"));
    browser.picture("9-phone-keyboard");
}
