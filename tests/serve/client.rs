//! OpenAI's own Python client, unchanged.

use crate::server::Server;
use std::path::{Path, PathBuf};

/// The Python that has the client: `scripts/setup.sh` makes it for the tests.
fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/openai-client/bin/python");
    if python.exists() {
        return Some(python);
    }
    assert!(
        std::env::var_os("BIDPO_REQUIRE_MODELS").is_none(),
        "BIDPO_REQUIRE_MODELS is set and {} is missing: BIDPO_SETUP_TESTS=1 scripts/setup.sh makes it",
        python.display()
    );
    eprintln!("SKIPPED: {} is missing", python.display());
    None
}

#[test]
fn the_official_client_works_unchanged() {
    let Some(python) = python() else { return };
    let Some(server) = Server::start(&["--api-key", "secret", "--slots", "2", "--queue", "2"]) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/client.py");
    let out = std::process::Command::new(python)
        .arg(script)
        .env("OPENAI_BASE_URL", format!("{}/v1", server.url))
        .env("OPENAI_API_KEY", "secret")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && said.trim_end().ends_with("all is well"),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
