"""What users of the official client do, against the server that OPENAI_BASE_URL names."""

import asyncio

import openai

client = openai.OpenAI(max_retries=0)
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model
question = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "How do I make a cup of tea?"}]
flowery = {"steering": [{"vector": "plain-vs-flowery", "scale": 1.0}], "scope": "all"}


def chat(**more):
    return client.chat.completions.create(model=model, messages=question, temperature=0, max_completion_tokens=20, **more)


# Plain and steered.
plain, steered = chat(), chat(extra_body=flowery)
text = plain.choices[0].message.content
assert text and text != steered.choices[0].message.content
assert plain.choices[0].finish_reason in ("stop", "length")
assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens

# A stream gives the same, with usage at its end.
parts = list(chat(stream=True, stream_options={"include_usage": True}, extra_body=flowery))
streamed = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
assert streamed == steered.choices[0].message.content, (streamed, steered)
assert parts[-1].usage.completion_tokens == steered.usage.completion_tokens and not parts[-1].choices

# The client's own accumulator of streams agrees.
with client.chat.completions.stream(model=model, messages=question, temperature=0, max_completion_tokens=20) as stream:
    for event in stream:
        pass
    assert stream.current_completion_snapshot.choices[0].message.content == text

# Log-probabilities.
content = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert b"".join(bytes(t.bytes) for t in content).decode() == text
assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob >= t.logprob - 1e-9 for t in content)

# Stop, seed, choices.
stop = text[12:18]
assert chat(stop=stop).choices[0].message.content == text[: text.index(stop)]
sample = dict(model=model, messages=question, max_tokens=8, temperature=1.0, top_p=0.9, seed=3, n=2)
first, second = (client.chat.completions.create(**sample) for _ in range(2))
assert [c.message.content for c in first.choices] == [c.message.content for c in second.choices] and len(first.choices) == 2

# Completions.
done = client.completions.create(model=model, prompt="Once upon a time", max_tokens=5, temperature=0, logprobs=1, echo=True)
assert done.choices[0].text.startswith("Once upon a time") and done.choices[0].logprobs.token_logprobs[0] is None
parts = list(client.completions.create(model=model, prompt="Once upon a time", max_tokens=5, temperature=0, stream=True))
assert "Once upon a time" + "".join(p.choices[0].text for p in parts) == done.choices[0].text


# Errors come as the exceptions that programs catch.
def fails(kind, **request):
    try:
        client.chat.completions.create(**{"model": model, "messages": question, **request})
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} for {request}")


error = fails(openai.BadRequestError, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
assert error.code == "unsupported_parameter" and error.param == "tools", error
assert fails(openai.BadRequestError, extra_body={"steering": [{"vector": "nobody"}]}).param == "steering[0].vector"
assert fails(openai.NotFoundError, model="gpt-4o").code == "model_not_found"
assert fails(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 6000}]).code == "context_length_exceeded"
try:
    openai.OpenAI(api_key="wrong", max_retries=0).models.list()
    raise AssertionError("a wrong key was taken")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key"


# Several at once, and a stream that is left.
async def at_once():
    many = openai.AsyncOpenAI(max_retries=0)
    ask = lambda body: many.chat.completions.create(model=model, messages=question, temperature=0, max_completion_tokens=20, extra_body=body)
    a, b, c = await asyncio.gather(ask({}), ask(flowery), ask({}))
    assert a.choices[0].message.content == c.choices[0].message.content == text
    assert b.choices[0].message.content == steered.choices[0].message.content
    stream = await many.chat.completions.create(model=model, messages=question, max_tokens=1000, stream=True)
    async for _ in stream:
        break
    await stream.close()
    crowd = await asyncio.gather(*(ask({}) for _ in range(12)), return_exceptions=True)
    refused = [r for r in crowd if isinstance(r, openai.RateLimitError)]
    assert refused and len(refused) < 12, crowd
    assert all(r.choices[0].message.content == text for r in crowd if not isinstance(r, Exception))


asyncio.run(at_once())
print("all is well")
