"""Sixteen clients at once, of four steerings, and each of them alone.

Sums come out differently in their last digits when a batch has another shape, so a token whose runner-up is as good as
it may differ. Alone, each answer tells by how much its tokens won; those that won by BOUND or more at every token are
asked for again, all at once.
"""

import json
import sys
import threading
import time
import urllib.request

import openai

# Natural logarithms. The greatest difference that the batch makes to one is checked to be under half of it: then no
# token can lose what it won by this.
BOUND = 0.05
CLIENTS = 16

given = json.load(sys.stdin)
steerings = given["steerings"]


def connect():
    return openai.OpenAI(base_url=given["url"] + "/v1", api_key="none", max_retries=0, timeout=120)


def ask(client, prompt, steering, stream):
    """Text, log probabilities of its tokens, and the least that a token won by."""
    answer = client.chat.completions.create(
        model="lorekeeper-7m-f16", messages=[{"role": "user", "content": prompt}], temperature=0,
        max_tokens=given["max_tokens"], logprobs=True, top_logprobs=2, stream=stream, extra_body={"steering": steering})
    if stream:
        choices = [chunk.choices[0] for chunk in answer if chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    else:
        text, tokens = answer.choices[0].message.content, answer.choices[0].logprobs.content
    margin = min(token.top_logprobs[0].logprob - token.top_logprobs[1].logprob for token in tokens)
    return text, [token.logprob for token in tokens], margin


client = connect()
chosen, n_alone, began = [], 0, time.monotonic()
for number, steering in enumerate(steerings):
    found = []
    for prompt in given["prompts"][number:] + given["prompts"][:number]:
        alone = ask(client, prompt, steering, stream=False)
        n_alone += 1
        if alone[2] >= BOUND:
            found.append((number, prompt, alone))
        if len(found) == CLIENTS // len(steerings):
            break
    assert len(found) == CLIENTS // len(steerings), f"steering {number}: {len(found)} prompts won by {BOUND}"
    chosen += found
seconds_alone = time.monotonic() - began

together, busy = [None] * CLIENTS, []
barrier = threading.Barrier(CLIENTS + 1)


def run(i):
    number, prompt, _ = chosen[i]
    own = connect()
    barrier.wait()
    together[i] = ask(own, prompt, steerings[number], stream=i % 2 == 0)


# Neighbours in the batch have different steerings.
threads = [threading.Thread(target=run, args=(i % 4 * 4 + i // 4,)) for i in range(CLIENTS)]
for thread in threads:
    thread.start()
barrier.wait()
began = time.monotonic()
while any(thread.is_alive() for thread in threads):
    with urllib.request.urlopen(given["url"] + "/health") as answer:
        busy.append(json.load(answer)["slots"]["busy"])
    time.sleep(0.002)
seconds = time.monotonic() - began

difference = 0.0
for (number, prompt, (text, logs, _)), (text_then, logs_then, _) in zip(chosen, together):
    assert text == text_then, (steerings[number], prompt, text, text_then)
    difference = max([difference, *(abs(a - b) for a, b in zip(logs, logs_then, strict=True))])
assert difference < BOUND / 2, difference
assert len({text for _, _, (text, _, _) in chosen}) > CLIENTS // 2, "the answers differ"
json.dump({
    "least that a token won by": min(alone[2] for _, _, alone in chosen), "bound": BOUND,
    "greatest difference of a log probability": difference,
    "most slots busy at once": max(busy), f"seconds for {CLIENTS} at once": round(seconds, 2),
    f"seconds for {n_alone} one after the other": round(seconds_alone, 2),
    "answers": [{"prompt": prompt, "steering": number, "text": alone[0]} for number, prompt, alone in chosen],
}, sys.stdout)
