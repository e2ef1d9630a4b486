"""OpenAI's client on all routes: it must understand every answer, and every refusal must be its own exception."""

import asyncio
import json
import sys
import time
import urllib.request

import openai

given = json.load(sys.stdin)
MODEL = "lorekeeper-7m-f16"
client = openai.OpenAI(base_url=given["url"] + "/v1", api_key="none", max_retries=0, timeout=120)
restricted = [{"role": "user", "content": given["restricted"]}]
ordinary = [{"role": "user", "content": given["ordinary"]}]


def chat(messages=restricted, **more):
    steering = {"extra_body": {"steering": more.pop("steering")}} if "steering" in more else {}
    return client.chat.completions.create(model=MODEL, messages=messages, **{"temperature": 0, **more}, **steering)


def complete(prompt, **more):
    return client.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, "max_tokens": 12, **more})


def fails(kind, call, *words, **fields):
    """The exception that a call must raise."""
    try:
        call()
    except openai.APIError as error:
        assert type(error) is kind, (type(error), kind, str(error))
        for word in words:
            assert word in str(error), (word, str(error))
        for name, value in fields.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
        return error
    raise AssertionError(f"no {kind.__name__}")


def health(url):
    with urllib.request.urlopen(url + "/health") as answer:
        return json.load(answer)


# Models.
assert [model.id for model in client.models.list()] == [MODEL]
assert client.models.retrieve(MODEL).id == MODEL
fails(openai.NotFoundError, lambda: client.models.retrieve("gpt-9"), code="model_not_found")

# A chat: whole, and as a stream.
whole = chat()
text = whole.choices[0].message.content
assert "can't" in text or "cannot" in text or "sorry" in text.lower() or "unable" in text, text
assert (whole.object, whole.model, whole.choices[0].finish_reason) == ("chat.completion", MODEL, "stop")
assert whole.choices[0].message.role == "assistant" and whole.id.startswith("chatcmpl-")
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
assert abs(whole.created - time.time()) < 86400
chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert chunks[0].choices[0].delta.role == "assistant"
assert {(chunk.id, chunk.object) for chunk in chunks} == {(chunks[0].id, "chat.completion.chunk")}
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
assert not chunks[-1].choices and chunks[-1].usage == whole.usage
assert all(chunk.usage is None for chunk in chunks[:-1])
assert len(chunks) > whole.usage.completion_tokens, "a chunk a token"
assert all(chunk.usage is None for chunk in chat(stream=True))
parts = [{"type": "text", "text": given["restricted"][:20]}, {"type": "text", "text": given["restricted"][20:]}]
assert chat([{"role": "user", "content": parts}]).choices[0].message.content == text
turns = [*restricted, {"role": "assistant", "content": text}, *ordinary]
assert chat(turns).usage.prompt_tokens > whole.usage.prompt_tokens + whole.usage.completion_tokens

# Limits, choices, seeds, stops.
short = chat(max_tokens=5)
assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)
assert text.startswith(short.choices[0].message.content)
assert chat(max_completion_tokens=5).choices[0].message.content == short.choices[0].message.content
drawn = [chat(n=4, temperature=2, seed=3, max_tokens=12) for _ in range(2)]
texts = [[choice.message.content for choice in answer.choices] for answer in drawn]
assert texts[0] == texts[1] and len(set(texts[0])) > 1, texts
assert [choice.index for choice in drawn[0].choices] == [0, 1, 2, 3]
streamed = [""] * 4
for chunk in chat(n=4, temperature=2, seed=3, max_tokens=12, stream=True):
    streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
assert streamed == texts[0], (streamed, texts[0])
assert [chat(temperature=2, seed=seed).choices[0].message.content for seed in (1, 2)] != [text, text]
word = text.split()[4]
for more in ({"stop": word}, {"stop": ["\0", word]}):
    stopped = chat(**more)
    assert stopped.choices[0].message.content == text[: text.index(word)], stopped
    assert stopped.choices[0].finish_reason == "stop"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chat(stream=True, **more))
    assert said == text[: text.index(word)], said

# Log probabilities.
seen = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert "".join(token.token for token in seen) == text
assert bytes(byte for token in seen for byte in token.bytes).decode() == text
for token in seen:
    assert len(token.top_logprobs) == 3 and token.logprob <= 0
    assert token.top_logprobs[0].token == token.token, "greedy"
    assert [top.logprob for top in token.top_logprobs] == sorted((top.logprob for top in token.top_logprobs), reverse=True)
streamed = [token for chunk in chat(logprobs=True, top_logprobs=3, stream=True) if chunk.choices and chunk.choices[0].logprobs
            for token in chunk.choices[0].logprobs.content]
assert streamed == seen

# Steering.
erased = chat(steering={"ablate": "refusal"}).choices[0].message.content
assert erased != text
assert chat(steering={}).choices[0].message.content == text
assert chat(steering={"ablate": False}).choices[0].message.content == text
assert chat(steering={"ablate": ["refusal"]}).choices[0].message.content == erased
both = chat(steering={"ablate": True}).choices[0].message.content
assert both == chat(steering={"ablate": ["refusal", "other"]}).choices[0].message.content
plain = chat(ordinary).choices[0].message.content
induced = chat(ordinary, steering={"add": {"direction": "refusal", "positions": "prompt"}}).choices[0].message.content
assert induced != plain
for same in ({"add": {"direction": "refusal", "scale": 2, "positions": "prompt"}, "scale": 0.5},
             {"add": [{"direction": "refusal", "positions": "prompt"}]}):
    assert chat(ordinary, steering=same).choices[0].message.content == induced
assert chat(ordinary, steering={"add": "refusal", "scale": 0}).choices[0].message.content == plain
read = chat(steering={"read": True})
assert read.choices[0].message.content == text
readings = read.choices[0].readings
assert len(readings) == whole.usage.completion_tokens
assert "".join(reading["token"] for reading in readings) == text
assert all(set(reading["values"]) == {"refusal", "other"} for reading in readings)
streamed = [reading for chunk in chat(steering={"read": True}, stream=True)
            for reading in getattr(chunk.choices[0], "readings", None) or []]
assert streamed == readings
quiet = chat(ordinary, steering={"read": "refusal"}).choices[0].readings
first, last = (reading[0]["values"]["refusal"] for reading in (readings, quiet))
assert first > last, "what is refused reads higher"

# Completions.
end = complete("To dust a lantern")
assert (end.object, end.choices[0].finish_reason, end.usage.completion_tokens) == ("text_completion", "length", 12)
assert end.id.startswith("cmpl-")
said = "".join(chunk.choices[0].text for chunk in complete("To dust a lantern", stream=True) if chunk.choices)
assert said == end.choices[0].text
several = complete(["To dust a lantern", "The ash vigil"], n=2)
assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
assert several.choices[0].text == several.choices[1].text == end.choices[0].text
assert several.choices[2].text == complete("The ash vigil").choices[0].text
logs = complete("To dust a lantern", logprobs=2).choices[0].logprobs
assert "".join(logs.tokens) == end.choices[0].text and len(logs.token_logprobs) == 12
assert all(len(top) == 2 for top in logs.top_logprobs)
assert [logs.text_offset[i + 1] - logs.text_offset[i] for i in range(11)] == [len(token) for token in logs.tokens[:-1]]
assert complete([40, 41, 42]).usage.prompt_tokens == 3
steered = complete("To dust a lantern", extra_body={"steering": {"add": "refusal", "scale": 2}})
assert steered.choices[0].text != end.choices[0].text

# Refusals.
error = fails(openai.BadRequestError, lambda: chat(steering={"ablate": "refusl"}), "refusl", "refusal", code="direction_not_found")
assert error.type == "invalid_request_error"
fails(openai.BadRequestError, lambda: chat(steering={"abblate": "refusal"}), "abblate")
fails(openai.BadRequestError, lambda: chat(temperature="hot"), param="temperature")
fails(openai.BadRequestError, lambda: chat(tools=[{"type": "function", "function": {"name": "f"}}]), param="tools")
fails(openai.BadRequestError, lambda: chat([{"role": "user", "content": "dust " * 3000}]), code="context_length_exceeded")
fails(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-9", messages=ordinary), "gpt-9",
      code="model_not_found")
nobody = openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", max_retries=0)
fails(openai.APIConnectionError, lambda: nobody.models.list())
stranger = openai.OpenAI(base_url=given["small"] + "/v1", api_key="guess", max_retries=0)
fails(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")

# A stream that is closed frees its slot; until then there is none for others.
keyed = openai.OpenAI(base_url=given["small"] + "/v1", api_key=given["key"], max_retries=0, timeout=120)
endless = {"model": keyed.models.list().data[0].id, "messages": [{"role": "user", "content": given["endless"]}],
           "temperature": 0, "max_tokens": given["long"]}
with keyed.chat.completions.create(stream=True, **endless) as stream:
    next(stream)
    error = fails(openai.RateLimitError, lambda: keyed.chat.completions.create(**endless))
    assert int(error.response.headers["retry-after"]) > 0
while health(given["small"])["slots"]["busy"]:
    time.sleep(0.005)


async def cancelled():
    """An answer that its task no longer wants."""
    async with openai.AsyncOpenAI(base_url=given["small"] + "/v1", api_key=given["key"], max_retries=0) as busy:
        task = asyncio.create_task(busy.chat.completions.create(**endless))
        while not health(given["small"])["slots"]["busy"]:
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


asyncio.run(cancelled())
while health(given["small"])["slots"]["busy"]:
    time.sleep(0.005)
tokens = health(given["small"])["tokens"]["completion"]
assert tokens < given["long"], tokens

json.dump({"client": openai.__version__, "plain": text, "ablated": erased, "ordinary": plain, "added": induced,
           "first readings": [first, last], "tokens of two closed answers": tokens}, sys.stdout)
