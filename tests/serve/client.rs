//! OpenAI's own Python client, unchanged.

use crate::common;
use crate::server::Server;
use std::path::Path;

#[test]
fn the_official_client_works_unchanged() {
    let Some(python) = common::python_with_openai() else { return };
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
