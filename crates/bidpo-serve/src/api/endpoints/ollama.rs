//! Ollama's API, for front-ends that speak nothing else: `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, ...
//!
//! A request is turned into the fields of OpenAI's, so that both APIs take the same values and give the same answers.

use crate::api::endpoints::chat::restrict;
use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, short};
use crate::api::read::messages::{self, Chat, Encoded};
use crate::api::read::notes::Notes;
use crate::api::read::request::{Common, MAX_TOP_LOGPROBS, common};
use crate::api::read::samplers::token_limit;
use crate::api::read::thoughts::{AT_THE_TOP, Thoughts, Told, variables};
use crate::api::read::tools::{CallReader, CallTeller, can_call, take_calls};
use crate::api::respond::{StreamKind, StreamLines, gather, stream_lines, tokens_json};
use crate::api::submit::{CompletionOptions, Sequence, remaining_context, submit};
use crate::engine::job::{Client, Event, Finish, TokenInfo, Usage};
use crate::state::State;
use axum::Json;
use axum::extract::{self, Extension, Request};
use axum::response::{IntoResponse, Response};
use bidpo_core::data::{Message, Prompt, ThoughtSplitter};
use ggml_grad::llama::Model;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An error in Ollama's shape: `{"error": TEXT}`.
#[derive(Debug)]
pub(crate) struct OllamaError(ApiError);

impl From<ApiError> for OllamaError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for OllamaError {
    fn into_response(self) -> Response {
        let body = json!({"error": self.0.message}).to_string();
        let mut response = self.0.into_response();
        response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        *response.body_mut() = body.into();
        response
    }
}

/// Options of the machine, not of the answer.
const OF_THE_MACHINE: [&str; 12] = [
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "numa",
    "low_vram",
    "use_mmap",
    "use_mlock",
    "vocab_only",
    "f16_kv",
];

/// Ollama's own sampling, where a request does not set it.
fn defaults() -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in [("temperature", 0.8), ("top_p", 0.9), ("top_k", 40.0), ("repeat_penalty", 1.1)] {
        map.insert(key.into(), json!(value));
    }
    map
}

/// The request with OpenAI's names: options one level up, and `format` as `response_format`.
fn translate(value: Value, notes: &mut Notes) -> Result<Fields, ApiError> {
    let mut given = Fields::new(value, "")?;
    let mut map = defaults();
    if let Some(options) = given.take("options") {
        let Value::Object(options) = options else { return Err(given.wrong("options", "must be an object")) };
        for (key, value) in options.into_iter().filter(|(_, v)| !v.is_null()) {
            match key.as_str() {
                "num_predict" => _ = map.insert("max_tokens".into(), value),
                "repeat_last_n" => notes.unknown("options.", &key)?,
                key if OF_THE_MACHINE.contains(&key) => {}
                _ => _ = map.insert(key, value),
            }
        }
    }
    match given.take("format") {
        None => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) if text == "json" => {
            map.insert("response_format".into(), json!({"type": "json_object"}));
        }
        Some(schema @ Value::Object(_)) => {
            map.insert("response_format".into(), json!({"type": "json_schema", "json_schema": {"schema": schema}}));
        }
        Some(other) => {
            return Err(given.wrong("format", &format!("must be \"json\" or a JSON schema, not {}", short(&other))));
        }
    }
    match given.take("think") {
        // Templates name the variable in either way.
        Some(Value::Bool(think)) => {
            map.insert("enable_thinking".into(), json!(think));
            map.insert("thinking".into(), json!(think));
        }
        Some(Value::String(effort)) => _ = map.insert("reasoning_effort".into(), json!(effort)),
        Some(other) => {
            return Err(given.wrong("think", &format!("must be true, false or a level, not {}", short(&other))));
        }
        None => {}
    }
    for key in ["keep_alive", "truncate", "shift"] {
        given.take(key);
    }
    // Ollama's streams are the default.
    map.insert("stream".into(), json!(given.boolean("stream")?.unwrap_or(true)));
    for (key, value) in given.rest() {
        map.insert(key, value);
    }
    Fields::new(Value::Object(map), "")
}

/// Where the text of an answer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Chat,
    Generate,
}

/// What all lines of an answer share.
#[derive(Debug)]
struct Lines {
    shape: Shape,
    model: String,
    splitter: ThoughtSplitter,
    teller: Option<CallTeller>,
    /// Log-probabilities are told.
    logprobs: Option<Arc<Model>>,
}

impl Lines {
    /// A line for a piece of the answer, without its calls in the text. `end`: it is the last one.
    fn parted(&mut self, told: &mut Told, end: bool) -> Vec<Value> {
        let calls = take_calls(&mut self.teller, &mut told.answer, end);
        calls.iter().map(ollama_call).collect()
    }

    /// A line with the log-probabilities of its tokens, where they are wanted.
    fn scored(&self, mut line: Value, tokens: &[TokenInfo]) -> Value {
        if let Some(model) = self.logprobs.as_ref().filter(|_| !tokens.is_empty()) {
            line["logprobs"] = tokens_json(model, tokens);
        }
        line
    }

    fn line(&self, told: &Told) -> Value {
        let mut value = json!({"model": self.model, "created_at": rfc3339(SystemTime::now())});
        match self.shape {
            Shape::Chat => {
                value["message"] = json!({"role": "assistant", "content": told.answer});
                told.add_reasoning(&mut value["message"], "thinking");
            }
            Shape::Generate => {
                value["response"] = json!(told.answer);
                told.add_reasoning(&mut value, "thinking");
            }
        }
        value["done"] = json!(false);
        value
    }

    fn done(&self, told: &Told, reason: &str, usage: &Usage) -> Value {
        let nanos = |t: Duration| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX);
        let mut value = self.line(told);
        value["done"] = json!(true);
        value["done_reason"] = json!(reason);
        value["total_duration"] = json!(nanos(usage.waited + usage.prompt_time + usage.answer_time));
        value["load_duration"] = json!(0);
        value["prompt_eval_count"] = json!(usage.n_prompt);
        value["prompt_eval_duration"] = json!(nanos(usage.prompt_time));
        value["eval_count"] = json!(usage.n_generated);
        value["eval_duration"] = json!(nanos(usage.answer_time));
        value
    }
}

impl StreamLines for Lines {
    const KIND: StreamKind = StreamKind::Lines;

    fn begin(&mut self, _: usize) -> Vec<Value> {
        Vec::new()
    }

    fn more(&mut self, _: usize, event: &Event) -> Vec<Value> {
        let Event::Text { text, tokens } = event else { return Vec::new() };
        let mut told = Told::of(self.splitter.push(text));
        let calls = self.parted(&mut told, false);
        if told.is_empty() && calls.is_empty() && (self.logprobs.is_none() || tokens.is_empty()) {
            return Vec::new();
        }
        vec![with_calls(self.scored(self.line(&told), tokens), calls)]
    }

    fn last(&mut self, _: usize, finish: Finish, usage: &Usage) -> Vec<Value> {
        let mut rest = Told::of(self.splitter.finish());
        let calls = self.parted(&mut rest, true);
        vec![with_calls(self.done(&rest, finish.word(), usage), calls)]
    }

    fn end(&mut self, _: &[Usage]) -> Option<Value> {
        None
    }

    fn error(&self, error: &ApiError) -> Value {
        json!({"error": error.message})
    }
}

/// A call in Ollama's form: the arguments as an object.
fn ollama_call(call: &Value) -> Value {
    let arguments = call["function"]["arguments"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    json!({"function": {"name": call["function"]["name"], "arguments": arguments}})
}

fn with_calls(mut line: Value, calls: Vec<Value>) -> Value {
    if !calls.is_empty() {
        line["message"]["tool_calls"] = json!(calls);
    }
    line
}

/// Drops what `think` became where the template does not read it: such a model does not think.
fn no_thoughts(fields: &mut Fields) {
    for name in AT_THE_TOP {
        fields.take(name);
    }
}

/// `/api/chat`.
pub(crate) async fn chat(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, OllamaError> {
    let mut notes = Notes::new(state.strict_api);
    let mut fields = translate(body::read(&state, request).await?, &mut notes)?;
    if !fields.is_set("messages") || fields.is_empty_list("messages") {
        fields.take("messages");
        return loaded(&state, fields, notes, Shape::Chat);
    }
    let chat = messages::chat(&mut fields, &state, &mut notes)?;
    no_thoughts(&mut fields);
    let common = common(&mut fields, &state)?;
    let limit = token_limit(&mut fields, "max_tokens", 0)?;
    let top = top_logprobs(&mut fields)?;
    fields.done(&mut notes)?;
    let encoded = messages::encode(&state, chat).await?;
    answer(&state, &client, Shape::Chat, Prepared { encoded, common, limit, top, notes }).await
}

/// `/api/generate`: a text as one message of the user, or as it stands with `raw`.
pub(crate) async fn generate(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, OllamaError> {
    let mut notes = Notes::new(state.strict_api);
    let mut fields = translate(body::read(&state, request).await?, &mut notes)?;
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let system = fields.text("system")?.filter(|s| !s.is_empty());
    let raw = fields.boolean("raw")?.unwrap_or(false);
    for key in ["template", "context", "images"] {
        if fields.take(key).is_some_and(|v| v != json!("") && v != json!([])) {
            return Err(ApiError::unsupported(key, format!("{key} is not supported by this server")).into());
        }
    }
    if prompt.is_empty() {
        return loaded(&state, fields, notes, Shape::Generate);
    }
    let variables = variables(&mut fields, &state.template, &mut notes)?;
    no_thoughts(&mut fields);
    let common = common(&mut fields, &state)?;
    let limit = token_limit(&mut fields, "max_tokens", 0)?;
    let top = top_logprobs(&mut fields)?;
    fields.done(&mut notes)?;
    let encoded = if raw {
        let shared = Arc::clone(&state);
        let tokens =
            tokio::task::spawn_blocking(move || shared.plain.encode_prompt(&shared.model, &Prompt::Text(prompt)));
        let tokens = tokens.await.map_err(|e| ApiError::internal(e.to_string()))?;
        let tokens = tokens.map_err(|e| ApiError::template("prompt", &e))?;
        Encoded { tokens, thoughts: Thoughts::default(), calls: None, grammar: None }
    } else {
        let messages = system.map(Message::system).into_iter().chain([Message::user(prompt)]).collect();
        messages::encode(&state, Chat { variables, ..Chat::plain(messages) }).await?
    };
    answer(&state, &client, Shape::Generate, Prepared { encoded, common, limit, top, notes }).await
}

/// Reads `logprobs` and `top_logprobs`, which has no effect alone.
fn top_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?.unwrap_or(0);
    Ok(wanted.then_some(top as usize))
}

/// A request that only asks for the model to be there.
fn loaded(state: &State, mut fields: Fields, notes: Notes, shape: Shape) -> Result<Response, OllamaError> {
    let model = common(&mut fields, state)?.model;
    let splitter = Thoughts::default().splitter();
    let value = Lines { shape, model, splitter, teller: None, logprobs: None }.done(
        &Told::default(),
        "load",
        &Usage::default(),
    );
    Ok(notes.mark(state, Json(value).into_response()))
}

/// A checked request.
struct Prepared {
    encoded: Encoded,
    common: Common,
    limit: Option<usize>,
    /// Log-probabilities are wanted, and of so many of the most likely tokens.
    top: Option<usize>,
    notes: Notes,
}

async fn answer(state: &State, client: &Client, shape: Shape, request: Prepared) -> Result<Response, OllamaError> {
    let Prepared { encoded: Encoded { tokens, thoughts, calls, grammar }, mut common, limit, top, notes } = request;
    restrict(&mut common, calls.as_ref(), grammar)?;
    let thoughts = if common.grammar.is_some() { Thoughts::default() } else { thoughts };
    let max_tokens = remaining_context(state, "messages", tokens.len(), limit)?;
    let mut written = thoughts.written(&state.model);
    written.extend(calls.iter().flat_map(|c| c.written(&state.model)));
    let options = CompletionOptions { written, ..CompletionOptions::of(&mut common, top) };
    let sequence = Sequence { n_prompt: tokens.len(), tokens, score_from: None, max_tokens };
    let events = submit(state, client, vec![sequence], 1, &options)?;
    drop(options);
    let teller = calls.as_ref().map(CallReader::teller);
    let logprobs = top.map(|_| Arc::clone(&state.model));
    let mut lines = Lines { shape, model: common.model, splitter: thoughts.splitter(), teller, logprobs };
    if common.stream {
        return Ok(notes.mark(state, stream_lines(events, 1, lines)));
    }
    let (mut choices, usage) = gather(events, 1).await?;
    let choice = choices.pop().unwrap_or_default();
    let reason = choice.finish.map_or("stop", Finish::word);
    let mut told = thoughts.split(&choice.text);
    let calls = lines.parted(&mut told, true);
    let line = lines.scored(lines.done(&told, reason, &usage[0]), &choice.tokens);
    Ok(notes.mark(state, Json(with_calls(line, calls)).into_response()))
}

/// What is told of the model in lists.
fn entry(state: &State, name: &str) -> Value {
    json!({
        "name": name,
        "model": name,
        "modified_at": rfc3339(UNIX_EPOCH + Duration::from_secs(state.created)),
        "size": std::fs::metadata(state.model.path()).map_or(0, |m| m.len()),
        "digest": "",
        "details": details(state),
    })
}

fn details(state: &State) -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": state.model.architecture(),
        "families": [state.model.architecture()],
        "parameter_size": format!("{:.1}M", state.model.n_params() as f64 / 1e6),
        "quantization_level": state.model.description().rsplit(' ').next().unwrap_or_default(),
    })
}

/// `/api/tags`, `/api/ps`: the model's names.
pub(crate) async fn tags(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    let vectors = state.vectors.names();
    let listed = state.names.listed(vectors.iter().map(String::as_str));
    Json(json!({"models": listed.iter().map(|a| entry(&state, &a.name)).collect::<Vec<_>>()}))
}

/// `/api/show`.
pub(crate) async fn show(
    extract::State(state): extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, OllamaError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let names = [fields.text("model")?, fields.text("name")?];
    let name = names.into_iter().flatten().next().ok_or_else(|| fields.wrong("model", "is missing"))?;
    let steering = state.names.find(&name).ok_or_else(|| ApiError::no_model(&name, &state.names.base))?;
    state.vectors.resolve(&steering, None).map_err(|e| ApiError::model_without(&name, &e.reason))?;
    let architecture = state.model.architecture();
    let mut info = json!({
        "general.architecture": architecture,
        "general.parameter_count": state.model.n_params(),
    });
    info[format!("{architecture}.context_length")] = json!(state.n_ctx);
    info[format!("{architecture}.embedding_length")] = json!(state.model.n_embd());
    info[format!("{architecture}.block_count")] = json!(state.model.n_layer());
    let mut capabilities = vec!["completion"];
    capabilities.extend(can_call(&state.template).then_some("tools"));
    capabilities.extend(state.template.thought_marks().map(|_| "thinking"));
    let answer = json!({
        "modelfile": "",
        "parameters": "",
        "template": state.template.source(),
        "details": details(&state),
        "model_info": info,
        "capabilities": capabilities,
        "modified_at": rfc3339(UNIX_EPOCH + Duration::from_secs(state.created)),
    });
    Ok(Json(answer).into_response())
}

/// `/api/version`.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// Endpoints of Ollama's that change what models there are, or that need another kind of model.
pub(crate) async fn not_offered(uri: axum::http::Uri) -> OllamaError {
    let reason = match uri.path() {
        "/api/embed" | "/api/embeddings" => "it loads the model for writing text, not for embeddings",
        _ => "its one model is the one it was started with",
    };
    OllamaError(ApiError::no_endpoint(uri.path(), reason))
}

/// `2025-01-31T12:00:00.123456Z`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a date: years are counted from March (Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_210_096, "2024-02-29T12:34:56.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn options_become_fields() {
        let mut notes = Notes::new(false);
        let value = json!({"model": "m", "options": {"num_predict": 5, "temperature": 0, "num_ctx": 9, "seed": null},
                           "format": "json", "keep_alive": "5m", "steering": []});
        let mut fields = translate(value, &mut notes).unwrap();
        assert_eq!(fields.take("max_tokens"), Some(json!(5)));
        assert_eq!((fields.take("temperature"), fields.take("top_k")), (Some(json!(0)), Some(json!(40.0))));
        assert_eq!(fields.take("response_format"), Some(json!({"type": "json_object"})));
        assert_eq!(
            (fields.take("num_ctx"), fields.take("keep_alive"), fields.take("stream")),
            (None, None, Some(json!(true)))
        );
        assert!(
            translate(json!({"options": 1}), &mut notes).is_err()
                && translate(json!({"format": 1}), &mut notes).is_err()
        );
    }
}
