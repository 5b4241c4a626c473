//! A conversation in a terminal.

use super::*;

/// `bidpo chat` in a terminal of its own.
#[cfg(unix)]
struct Terminal {
    pty: Arc<pty_process::blocking::Pty>,
    child: std::process::Child,
    shown: Arc<std::sync::Mutex<String>>,
    /// Offset at which the next search starts.
    at: usize,
}

#[cfg(unix)]
impl Terminal {
    fn chat(model: &Path, history: &Path) -> Self {
        use std::io::Read;
        let (pty, pts) = pty_process::blocking::open().unwrap();
        pty.resize(pty_process::Size::new(40, 100)).unwrap();
        let child = pty_process::blocking::Command::new(assert_cmd::cargo::cargo_bin("bidpo"))
            .env("BIDPO_THREADS", "1")
            .env("TERM", "xterm")
            .args(["chat", "-n", "400", "-m"])
            .arg(model)
            .arg("--history")
            .arg(history)
            .spawn(pts)
            .unwrap();
        let pty = Arc::new(pty);
        let shown = Arc::new(std::sync::Mutex::new(String::new()));
        let (reader, text) = (Arc::clone(&pty), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = (&*reader).read(&mut bytes) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Self { pty, child, shown, at: 0 }
    }

    fn send(&self, keys: &str) {
        use std::io::Write;
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `found` says how far of what was shown since the last wait it has read.
    fn wait(&mut self, what: &str, found: impl Fn(&str) -> Option<usize>) {
        let start = std::time::Instant::now();
        loop {
            let shown = self.shown.lock().unwrap().clone();
            if let Some(n) = found(&shown[self.at..]) {
                self.at += n;
                return;
            }
            assert!(start.elapsed().as_secs() < 60, "no {what} in {:?}", &shown[self.at..]);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn wait_for(&mut self, text: &str) {
        self.wait(text, |shown| shown.find(text).map(|i| i + text.len()));
    }

    /// Waits until a line is being edited. What is typed earlier meets a terminal that is not in raw mode yet, where Ctrl-C
    /// is a signal that also drops the waiting input.
    fn wait_for_prompt(&mut self) {
        self.wait_for("\x1b[?2004h"); // bracketed paste is switched on after raw mode
    }

    fn ends_well(mut self) {
        let start = std::time::Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed().as_secs() < 60, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

/// In a terminal: Ctrl-C stops the answer and not the program, keys edit, complete and bring back, history outlives the
/// program.
#[cfg(unix)]
#[test]
fn a_terminal_conversation() {
    let Some(model) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("state/history");
    let json = folder.path().join("talk.json");
    let mut terminal = Terminal::chat(&model, &history);
    terminal.wait_for("/help lists the commands");
    terminal.wait_for_prompt();
    terminal.send("Write a very long story about a dragon.\r");
    terminal.wait_for("dragon.");
    terminal.wait("answer", |shown| (shown.len() > 80).then_some(80));
    terminal.send("\x03\x03"); // twice, as an impatient hand does
    terminal.wait_for("[stopped]");
    terminal.wait_for_prompt();
    terminal.send("/sta\t\r");
    terminal.wait_for("last answer:");
    terminal.wait_for("4096 tokens used");
    terminal.wait_for_prompt();
    terminal.send("a line that is given up\x03");
    terminal.wait_for("/quit to leave");
    terminal.wait_for_prompt();
    // Alt-Enter is a new line of the same input, and a backslash one more.
    terminal.send("Say\x1b\rhello,\\\rbriefly.\r");
    terminal.wait_for("briefly.");
    terminal.wait_for_prompt();
    terminal.send(&format!("/save {}\r", json.display()));
    terminal.wait_for("4 messages: ");
    terminal.wait_for_prompt();
    terminal.send("\x04");
    terminal.ends_well();
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(kept["messages"][2]["content"], "Say\nhello,\nbriefly.");
    assert_eq!(kept["messages"][1]["stop"], "interrupted");

    // The arrow keys know what an earlier program was told.
    let mut terminal = Terminal::chat(&model, &history);
    terminal.wait_for("/help lists the commands");
    terminal.wait_for_prompt();
    terminal.send("\x1b[A\r");
    terminal.wait_for("nothing was said yet");
    terminal.wait_for_prompt();
    terminal.send("/quit\r");
    terminal.ends_well();
    assert!(std::fs::read_to_string(&history).unwrap().contains("very long story"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);
}
