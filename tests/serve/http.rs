//! Keys, names, other sites' pages.

use crate::server::{Server, agent, ask};

#[test]
fn keys_and_origins() {
    let Some(server) =
        Server::start(&["--api-key", "first", "--api-key", "second key", "--cors-origin", "https://a.example"])
    else {
        return;
    };
    let models = |key: Option<&str>| {
        let mut request = agent().get(format!("{}/v1/models", server.url));
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        request.call().unwrap().status().as_u16()
    };
    assert_eq!(
        (models(None), models(Some("Bearer wrong")), models(Some("first")), models(Some("Bearer "))),
        (401, 401, 401, 401)
    );
    assert_eq!((models(Some("Bearer first")), models(Some("bearer second key"))), (200, 200));
    let other = |name: &str, key: &str| {
        agent().get(format!("{}/v1/models", server.url)).header(name, key).call().unwrap().status().as_u16()
    };
    assert_eq!(
        (other("x-api-key", "first"), other("api-key", "second key"), other("x-api-key", "third")),
        (200, 200, 401)
    );
    let compressed =
        agent().post(format!("{}/v1/chat/completions", server.url)).header("authorization", "Bearer first");
    let compressed = compressed.header("content-type", "application/json").header("content-encoding", "gzip");
    let mut compressed = compressed.send(&[0x1f, 0x8b, 8, 0]).unwrap();
    let said = compressed.body_mut().read_to_string().unwrap();
    assert!(compressed.status().as_u16() == 415 && said.contains("gzip"), "{said}");
    let (status, answer) = server.post("/v1/chat/completions", &ask("x", 1));
    assert_eq!((status, answer["error"]["code"].as_str()), (401, Some("invalid_api_key")));
    assert_eq!((server.get("/metrics").0, server.get("/health").0, server.get("/").0), (401, 200, 200));

    let preflight = |origin: &str| {
        let url = format!("{}/v1/chat/completions", server.url);
        let request = agent().options(url).header("origin", origin).header("access-control-request-method", "POST");
        let response = request.header("access-control-request-headers", "authorization,content-type").call().unwrap();
        response.headers().get("access-control-allow-origin").map(|v| v.to_str().unwrap().to_owned())
    };
    assert_eq!(
        (preflight("https://a.example").as_deref(), preflight("https://b.example")),
        (Some("https://a.example"), None)
    );
}

#[test]
fn other_names_and_other_sites_are_kept_out() {
    let Some(server) = Server::start(&["--allow-host", "steer.lan"]) else { return };
    let named = |host: &str| {
        agent().get(format!("{}/v1/models", server.url)).header("host", host).call().unwrap().status().as_u16()
    };
    assert_eq!(
        (named("localhost:1"), named("steer.lan"), named("evil.example"), named("127.0.0.1.evil.example")),
        (200, 200, 403, 403)
    );
    let page = agent().get(format!("{}/", server.url)).header("origin", "https://b.example").call().unwrap();
    assert!(page.headers().get("access-control-allow-origin").is_none());
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let web = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/bidpo-serve/src/web");
    let folders = ["", "css", "js", "vendor"].map(|f| std::fs::read_dir(web.join(f)).unwrap());
    let files = folders.into_iter().flatten().map(|f| f.unwrap().path()).filter(|f| f.is_file());
    let files: Vec<_> = files.collect();
    let names = files.iter().map(|f| f.strip_prefix(&web).unwrap().to_str().unwrap().replace('\\', "/"));
    for (file, name) in files.iter().zip(names.clone()).filter(|(_, name)| !name.ends_with("LICENSE")) {
        let text = std::fs::read_to_string(file).unwrap();
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
            assert!(!text.contains(sink), "{sink} in {name}");
        }
        // The Markdown parser names addresses in comments and patterns, the icon its XML name space.
        for outside in ["http:", "https:", "//cdn", "url(", "@import", "style=\"", "onclick="] {
            assert!(
                name.starts_with("vendor/") || name == "icon.svg" || !text.contains(outside),
                "{outside} in {name}"
            );
        }
    }
    // Each of them is served as it is.
    let Some(server) = Server::start(&[]) else { return };
    for (file, name) in files.iter().zip(names) {
        let path = if name == "index.html" { String::new() } else { name };
        assert_eq!(server.get(&format!("/{path}")), (200, std::fs::read_to_string(file).unwrap()), "{path}");
    }
}
