"""Runs real clients against `bidpo serve` and writes the section "Clients of the server" of docs/compatibility.md.

    python scripts/clients.py target/release/bidpo MODEL.gguf VECTOR.gguf [mc_task.json [N]]
    CLIENTS_ONLY=lm_eval,ollama python scripts/clients.py ...     # these programs; the rows of the others stay

The Python that runs it needs: openai langchain-openai litellm ollama llm "lm_eval[api]". It starts two servers: one with the
model's own template, one with a template that shows tools. The vector's name is that of the folder's list: `NAME.MODEL.gguf` is
NAME. The questions for lm_eval are TruthfulQA's (the first N, 100 by default), or those of tests/data/multiple_choice.json.
"""

import asyncio
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIDPO, FILE, VECTOR_FILE = (pathlib.Path(a).resolve() for a in sys.argv[1:4])
DATA = pathlib.Path(sys.argv[4]).resolve() if len(sys.argv) > 4 else ROOT / "tests/data/multiple_choice.json"
PAGE = ROOT / "docs/compatibility.md"
HEADING = "## Clients of the server"
FOLDER = pathlib.Path(tempfile.mkdtemp())
N_ITEMS = int(sys.argv[5]) if len(sys.argv) > 5 else 100

# ChatML with tools in the system message and calls between marks, the form of Hermes and Qwen.
TEMPLATE = """{% if tools %}<|im_start|>system
Tools:
{% for t in tools %}{{ t.function | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>
{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def serve(*more):
    """A server on a free port: process and address."""
    command = [BIDPO, "serve", "-m", FILE, "--vectors", VECTOR_FILE.parent, "--port", "0", *more]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = server.stdout.readline()
    if not line.startswith("listening on "):
        sys.exit(f"the server did not start: run {' '.join(map(str, command))}")
    return server, line.removeprefix("listening on ").strip()


(FOLDER / "tools.jinja").write_text(TEMPLATE)
SERVER, URL = serve()
TOOLS_SERVER, TOOLS_URL = serve("--template", FOLDER / "tools.jinja", "--ctx", "1024")
MODEL = json.load(urllib.request.urlopen(URL + "/v1/models"))["data"][0]["id"]
VECTOR = VECTOR_FILE.name.removesuffix(".gguf").removesuffix("." + FILE.name.removesuffix(".gguf"))
STEERED = f"{MODEL}@{VECTOR}"
QUESTION = [{"role": "user", "content": "How do I make a cup of tea?"}]
SCHEMA = {
    "title": "Cup",
    "description": "A cup of tea.",
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "hot": {"type": "boolean"}},
    "required": ["size", "hot"],
    "additionalProperties": False,
}


def is_cup(cup):
    assert cup["size"] in ("small", "large") and isinstance(cup["hot"], bool) and len(cup) == 2, cup


def differ(plain, steered):
    assert plain and steered and plain != steered, (plain, steered)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 5}},
            "required": ["place", "days"],
        },
    },
}


def is_weather(name, arguments):
    assert name == "get_weather" and arguments["place"] in ("Oslo", "Rome"), (name, arguments)
    assert 1 <= arguments["days"] <= 5 and len(arguments) == 2, arguments


def openai_sync():
    import openai

    client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
    ask = lambda model, **more: client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=16, **more
    )
    plain = ask(MODEL).choices[0].message.content
    differ(plain, ask(STEERED).choices[0].message.content)
    assert "".join(p.choices[0].delta.content or "" for p in ask(MODEL, stream=True)) == plain


def openai_async():
    import openai

    async def both():
        async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0) as client:
            ask = lambda model: client.chat.completions.create(
                model=model, messages=QUESTION, temperature=0, max_tokens=16
            )
            return [a.choices[0].message.content for a in await asyncio.gather(ask(MODEL), ask(STEERED))]

    differ(*asyncio.run(both()))


def openai_parse():
    import openai
    import pydantic
    import typing

    class Cup(pydantic.BaseModel):
        size: typing.Literal["small", "large"]
        hot: bool

    client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.parse(model=STEERED, messages=QUESTION, response_format=Cup, max_tokens=60)
    is_cup(answer.choices[0].message.parsed.model_dump())


def openai_tools():
    import openai

    client = openai.OpenAI(base_url=TOOLS_URL + "/v1", api_key="none", max_retries=0)
    question = [{"role": "user", "content": "How will the weather be in Rome?"}]
    more = dict(model=STEERED, tools=[WEATHER], temperature=0, max_tokens=80)
    answer = client.chat.completions.create(messages=question, tool_choice="required", **more).choices[0]
    (called,) = answer.message.tool_calls
    is_weather(called.function.name, json.loads(called.function.arguments))
    assert answer.finish_reason == "tool_calls", answer.finish_reason
    # The tool's answer goes back, and the model writes on.
    told = question + [answer.message, {"role": "tool", "tool_call_id": called.id, "content": "Sunny, 20 degrees."}]
    assert client.chat.completions.create(messages=told, tool_choice="none", **more).choices[0].message.content


def openai_responses():
    """The Responses API: the chat's answer, as a stream, parsed, with a call and its result."""
    import openai
    import pydantic
    import typing

    class Cup(pydantic.BaseModel):
        size: typing.Literal["small", "large"]
        hot: bool

    client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
    question = QUESTION[0]["content"]
    ask = lambda model, **more: client.responses.create(model=model, input=question, temperature=0, max_output_tokens=16, **more)
    plain = ask(MODEL)
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=16)
    assert plain.output_text == chat.choices[0].message.content and plain.status == "incomplete", plain
    differ(plain.output_text, ask(STEERED).output_text)
    assert ask(MODEL, extra_body={"steering": [{"vector": VECTOR}]}).output_text == ask(STEERED).output_text
    assert "".join(e.delta for e in ask(MODEL, stream=True) if e.type == "response.output_text.delta") == plain.output_text
    # The client's own accumulator takes answers that were not cut off.
    with client.responses.stream(model=MODEL, input=question, text_format=Cup, temperature=0) as stream:
        is_cup(stream.get_final_response().output_parsed.model_dump())
    is_cup(client.responses.parse(model=STEERED, input=question, text_format=Cup).output_parsed.model_dump())

    client = openai.OpenAI(base_url=TOOLS_URL + "/v1", api_key="none", max_retries=0)
    more = dict(model=STEERED, tools=[{"type": "function", **WEATHER["function"]}], temperature=0, max_output_tokens=80)
    asked = [{"role": "user", "content": "How will the weather be in Rome?"}]
    (called,) = client.responses.create(input=asked, tool_choice="required", **more).output
    is_weather(called.name, json.loads(called.arguments))
    told = [*asked, called, {"type": "function_call_output", "call_id": called.call_id, "output": "Sunny, 20 degrees."}]
    assert client.responses.create(input=told, tool_choice="none", **more).output_text


def langchain():
    from langchain_openai import ChatOpenAI

    chat = lambda model: ChatOpenAI(model=model, base_url=URL + "/v1", api_key="none", temperature=0, max_tokens=60)
    differ(chat(MODEL).invoke("How do I make tea?").content, chat(STEERED).invoke("How do I make tea?").content)
    is_cup(chat(STEERED).with_structured_output(SCHEMA, method="json_schema").invoke("A cup of tea, please."))


def langchain_tools():
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    import typing

    @tool
    def get_weather(place: typing.Literal["Oslo", "Rome"], days: typing.Literal[1, 2, 3]) -> str:
        """Weather of a place."""
        return f"Sunny in {place} for {days} days."

    chat = ChatOpenAI(model=STEERED, base_url=TOOLS_URL + "/v1", api_key="none", temperature=0, max_tokens=80)
    messages = [HumanMessage("How will the weather be in Rome?")]
    answer = chat.bind_tools([get_weather], tool_choice="any").invoke(messages)
    (called,) = answer.tool_calls
    is_weather(called["name"], called["args"])
    result = get_weather.invoke(called)
    assert isinstance(result, ToolMessage) and "Sunny" in result.content
    assert chat.invoke([*messages, answer, result]).content
    # As a stream the same call comes together.
    parts = None
    for part in chat.bind_tools([get_weather], tool_choice="any").stream(messages):
        parts = part if parts is None else parts + part
    assert [c["args"] for c in parts.tool_calls] == [called["args"]], parts.tool_calls


def litellm():
    import litellm

    ask = lambda model: litellm.completion(
        model="openai/" + model, api_base=URL + "/v1", api_key="none", messages=QUESTION, temperature=0, max_tokens=16
    )
    differ(ask(MODEL).choices[0].message.content, ask(STEERED).choices[0].message.content)


def ollama():
    import ollama

    client = ollama.Client(host=URL)
    assert STEERED in [m.model for m in client.list().models] and client.show(MODEL).capabilities
    ask = lambda model: client.chat(model, QUESTION, options={"temperature": 0, "num_predict": 16})
    plain = ask(MODEL).message.content
    differ(plain, ask(STEERED).message.content)
    parts = client.chat(MODEL, QUESTION, options={"temperature": 0, "num_predict": 16}, stream=True)
    assert "".join(p.message.content for p in parts) == plain
    is_cup(json.loads(client.chat(STEERED, QUESTION, format=SCHEMA, options={"num_predict": 60}).message.content))


def ollama_tools():
    """Ollama has no `tool_choice`: the model is free, so that its answer is a call in form or a text."""
    import ollama

    client = ollama.Client(host=TOOLS_URL)
    question = [{"role": "user", "content": "How will the weather be in Rome?"}]
    call = {"function": {"name": "get_weather", "arguments": {"place": "Rome", "days": 2}}}
    told = [*question, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "Sunny.", "tool_name": "get_weather"}]
    options = {"temperature": 0, "num_predict": 40}
    for messages in (question, told):
        message = client.chat(STEERED, messages, tools=[WEATHER], options=options).message
        assert message.content or message.tool_calls, message
    assert "tools" in client.show(MODEL).capabilities


def llm_program():
    """The program `llm` with a model of its own configuration, once as a whole and once as a stream."""
    (FOLDER / "extra-openai-models.yaml").write_text(
        "".join(f"- model_id: {name}\n  model_name: {model}\n  api_base: {URL}/v1\n  supports_schema: true\n" for name, model in (("plain", MODEL), ("steered", STEERED)))
    )
    environment = {**os.environ, "LLM_USER_PATH": str(FOLDER), "OPENAI_API_KEY": "none"}
    program = pathlib.Path(sys.executable).parent / "llm"

    def ask(model, *more):
        options = ["-o", "temperature", "0", "-o", "max_tokens", "16", "--no-log", *more]
        done = subprocess.run([program, "-m", model, *options, QUESTION[0]["content"]], env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    plain = ask("plain")
    differ(plain, ask("steered"))
    assert ask("plain", "--no-stream") == plain
    is_cup(json.loads(ask("steered", "-o", "max_tokens", "60", "--schema", json.dumps(SCHEMA))))


def lm_eval():
    """The log-likelihoods of greedy continuations are those that were told when the server wrote them.

    Of one token to 1e-6. Of several tokens to 0.2 nats: a written token is computed alone, a scored one among others, and
    quantized kernels round differently. The texts end before a line feed, since two of these are read as one token.
    """
    import openai
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
    for model in (MODEL, STEERED):
        lm = LocalCompletionsAPI(
            model=model, base_url=URL + "/v1/completions", tokenizer_backend="remote", tokenized_requests=False
        )
        for prompt in ("The capital of France is", "Tea is made of"):
            for n, allowed in ((1, 1e-6), (4, 0.2)):
                wrote = client.completions.create(
                    model=model, prompt=prompt, temperature=0, max_tokens=n, logprobs=1, stop="\n"
                )
                text, tokens = wrote.choices[0].text, wrote.choices[0].logprobs
                told = sum(p for p, t in zip(tokens.token_logprobs, tokens.tokens) if t.strip())
                request = Instance("loglikelihood", {}, (prompt, text), 0)
                ((score, greedy),) = lm.loglikelihood([request], disable_tqdm=True)
                assert greedy and abs(score - told) < allowed, (model, prompt, text, score, told, greedy)


def items():
    """Questions with their answers, the best one first, as lm_eval's task has them."""
    for item in json.loads(DATA.read_text())[:N_ITEMS]:
        answers = item["mc1_targets"]
        choices = sorted(answers, key=lambda a: -answers[a])
        assert [answers[c] for c in choices[:2]] == [1, 0], item
        yield {"question": item["question"], "mc1_targets": {"choices": choices}}


def lm_eval_mc1():
    """lm_eval's own task truthfulqa_mc1 on local items: each decision against that of `bidpo eval`, unsteered and steered."""
    import lm_eval
    import yaml

    folder = pathlib.Path(lm_eval.__file__).parent / "tasks/truthfulqa"
    task = yaml.safe_load((folder / "truthfulqa_mc1.yaml").read_text())
    (FOLDER / "items.json").write_text(json.dumps(list(items())))
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"validation": str(FOLDER / "items.json")}}}
    out = FOLDER / "bidpo.jsonl"
    command = [BIDPO, "eval", "truthfulqa", "-d", DATA, "-m", FILE, "--vector", VECTOR_FILE, "-p", "mc1", "--prompt", "qa", "--limit", str(N_ITEMS), "--baselines", "unsteered", "--categories", "none", "-o", out]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = []
    for model, condition in ((MODEL, "unsteered"), (STEERED, "steered")):
        lm = {"model": model, "base_url": URL + "/v1/completions", "tokenizer_backend": "remote", "tokenized_requests": False, "num_concurrent": 4}
        result = lm_eval.simple_evaluate(model="local-completions", model_args=lm, tasks=[{**task, **local}], bootstrap_iters=0, log_samples=True, verbosity="ERROR")
        (samples,) = result["samples"].values()
        theirs = {s["doc"]["question"]: [float(score) for score, _ in s["filtered_resps"]] for s in samples}
        found.append(compare(theirs, lines, condition))
    return found


def compare(theirs, lines, condition):
    """Decisions of lm_eval and `bidpo eval` on the same questions, in words.

    They are equal but where two answers lie as close as the scores of both programs: the server's KV cache has 16 bits, that of `eval`
    32, and quantized kernels, which round activations to 8 bits, make more of that (`bidpo check` says how much for a model).
    """
    ours = {line["question"]: line["views"][0]["logprobs"] for line in lines if line.get("condition") == condition}
    assert ours.keys() == theirs.keys() and len(ours) > 5, (len(ours), len(theirs))
    apart = sorted(abs(a - b) for q in ours for a, b in zip(ours[q], theirs[q], strict=True))
    margin = {q: scores[0] - max(scores[1:]) for q, scores in ours.items()}
    right = {q: scores[0] > max(scores[1:]) for q, scores in theirs.items()}
    other = [q for q in ours if right[q] != (margin[q] > 0)]
    close = [abs(margin[q]) for q in other]
    middle, most = apart[len(apart) // 2], apart[-1]
    assert middle < 0.5 and len(other) <= len(ours) / 20 and all(m < 2 * middle for m in close), (condition, middle, most, other, close)
    text = f"{condition} {len(ours) - len(other)} of {len(ours)}, {sum(right.values())} right"
    if other:
        text += f" ({len(other)} decided by less than {max(close):.2f} nats)"
    return f"{text}; log-likelihoods apart by {middle:.2f} nats in the median, at most {most:.2f}"


TRIED = [
    ("openai", "OpenAI", "chat, stream, steered through the model's name", openai_sync),
    ("openai", "AsyncOpenAI", "two chats at once", openai_async),
    ("openai", "`parse`", "a pydantic model as the answer's form", openai_parse),
    ("openai", "`tools`", "a required call, its result sent back; steered", openai_tools),
    ("openai", "`responses`", "the chat's answer, stream, `parse`, a required call, its result sent back; steered", openai_responses),
    ("langchain-openai", "ChatOpenAI", "chat, `with_structured_output`", langchain),
    ("langchain-openai", "`bind_tools`", "a call, as a whole and as a stream, run, its result sent back; steered", langchain_tools),
    ("litellm", "`completion`", "chat, steered", litellm),
    ("llm", "the program", "chat, stream, `--schema`, steered", llm_program),
    ("ollama", "Client", "list, show, chat, stream, `format`", ollama),
    ("ollama", "Client with `tools`", "tools shown, a call and its result in the history; steered", ollama_tools),
    ("lm_eval", "`local-completions`", "log-likelihoods against those told while writing: 1 token to 1e-6, up to 4 to 0.2 nats; steered too", lm_eval),
    ("lm_eval", f"`truthfulqa_mc1`, {FILE.stem}", "decisions equal to those of `bidpo eval truthfulqa -p mc1`", lm_eval_mc1),
]


def page():
    """The page before the section, the section, and the page behind it."""
    before, _, rest = PAGE.read_text().partition(HEADING)
    section, divider, following = rest.partition("\n## ")
    return before, section, divider + following


# The rows of an earlier run by program and part, for those that are left out of this one.
written = {tuple(c.strip() for c in row.split("|")[1:3]): row for row in page()[1].splitlines() if row.startswith("| ")}
known = {(program.split(" ")[0], part): row for (program, part), row in written.items()}
only = os.environ.get("CLIENTS_ONLY", "").split(",")
rows, failed = [], 0
try:
    for package, part, what, run in TRIED:
        if only != [""] and package not in only:
            rows.extend(filter(None, [known.get((package, part))]))
            continue
        try:
            found = run()
            result = "works" + (": " + "; ".join(found) if found else "")
        except Exception as error:
            failed += 1
            print(f"{package} {part}: {type(error).__name__}: {error}", file=sys.stderr)
            result = f"fails ({type(error).__name__})"
        rows.append(f"| {package} {importlib.metadata.version(package)} | {part} | {what} | {result} |")
        print(rows[-1], flush=True)
    # Decisions on other models.
    rows.extend(row for (_, part), row in known.items() if part.startswith("`truthfulqa_mc1`, ") and FILE.stem not in part)
finally:
    for server in (SERVER, TOOLS_SERVER):
        server.terminate()

section = f"""{HEADING}

Written by `scripts/clients.py`, which runs each program unchanged against `bidpo serve` (last run: {FILE.name}, the vector
`{VECTOR}`, questions of {DATA.name}). Tools are tried with a template that shows them, since the model's own does not. A model called
`tiny` is a random one of `bidpo synth`, with a random vector.

| program | part | tried | result |
| --- | --- | --- | --- |
""" + "\n".join(rows) + "\n"
before, _, after = page()
PAGE.write_text(before.rstrip() + "\n\n" + section + after)
sys.exit(failed > 0)
