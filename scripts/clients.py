"""Runs real clients against a running `bidpo serve` and writes the section "Clients of the server" of docs/compatibility.md.

    python scripts/clients.py http://127.0.0.1:8080 VECTOR

The Python that runs it needs: openai langchain-openai litellm ollama "lm_eval[api]".
"""

import asyncio
import importlib.metadata
import json
import pathlib
import sys
import urllib.request

URL, VECTOR = sys.argv[1].rstrip("/"), sys.argv[2]
PAGE = pathlib.Path(__file__).parent.parent / "docs/compatibility.md"
HEADING = "## Clients of the server"
MODEL = json.load(urllib.request.urlopen(URL + "/v1/models"))["data"][0]["id"]
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


def langchain():
    from langchain_openai import ChatOpenAI

    chat = lambda model: ChatOpenAI(model=model, base_url=URL + "/v1", api_key="none", temperature=0, max_tokens=60)
    differ(chat(MODEL).invoke("How do I make tea?").content, chat(STEERED).invoke("How do I make tea?").content)
    is_cup(chat(STEERED).with_structured_output(SCHEMA, method="json_schema").invoke("A cup of tea, please."))


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


def lm_eval():
    """The log-likelihoods of greedy continuations are those that were told when the server wrote them.

    Of one token to 1e-6. Of several tokens to 0.05 nats: a written token is computed alone, a scored one among others, and
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
            for n, allowed in ((1, 1e-6), (4, 0.05)):
                wrote = client.completions.create(
                    model=model, prompt=prompt, temperature=0, max_tokens=n, logprobs=1, stop="\n"
                )
                text, tokens = wrote.choices[0].text, wrote.choices[0].logprobs
                told = sum(p for p, t in zip(tokens.token_logprobs, tokens.tokens) if t.strip())
                request = Instance("loglikelihood", {}, (prompt, text), 0)
                ((score, greedy),) = lm.loglikelihood([request], disable_tqdm=True)
                assert greedy and abs(score - told) < allowed, (model, prompt, text, score, told, greedy)


TRIED = [
    ("openai", "OpenAI", "chat, stream, steered through the model's name", openai_sync),
    ("openai", "AsyncOpenAI", "two chats at once", openai_async),
    ("openai", "`parse`", "a pydantic model as the answer's form", openai_parse),
    ("langchain-openai", "ChatOpenAI", "chat, `with_structured_output`", langchain),
    ("litellm", "`completion`", "chat, steered", litellm),
    ("ollama", "Client", "list, show, chat, stream, `format`", ollama),
    ("lm_eval", "`local-completions`", "log-likelihoods against those told while writing: 1 token to 1e-6, up to 4 to 0.05 nats; steered too", lm_eval),
]

rows, failed = [], 0
for package, part, what, run in TRIED:
    try:
        run()
        result = "works"
    except Exception as error:
        failed += 1
        print(f"{package} {part}: {type(error).__name__}: {error}", file=sys.stderr)
        result = f"fails ({type(error).__name__})"
    rows.append(f"| {package} {importlib.metadata.version(package)} | {part} | {what} | {result} |")

section = f"""{HEADING}

Written by `scripts/clients.py`, which runs each program unchanged against `bidpo serve` (last run: SmolLM2-135M Q4_1, `plain-vs-flowery`).

| program | part | tried | result |
| --- | --- | --- | --- |
""" + "\n".join(rows) + "\n"
text = PAGE.read_text()
before, _, rest = text.partition(HEADING)
following = rest.partition("\n## ")
after = "\n## " + following[2] if following[1] else ""
PAGE.write_text(before.rstrip() + "\n\n" + section + after)
print(section)
sys.exit(failed > 0)
