"""openai-python: sync, async, streams, structured outputs, tools, embeddings and its errors."""
# /// script
# dependencies = ["openai>=3.57,<4"]
# ///

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")

answer = client.chat.completions.create(
    model="smollm2",
    messages=[{"role": "user", "content": "Say hi."}],
    max_tokens=10,
    temperature=0,
)
print(answer.choices[0].message.content, answer.usage)

for chunk in client.chat.completions.create(
    model="smollm2", messages=[{"role": "user", "content": "Say hi."}], max_tokens=10, stream=True
):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
# --- end of what docs/clients.md shows

import asyncio
import json
import os

import openai
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "Say hi."}]
ASKED = {"model": "smollm2", "messages": QUESTION, "max_tokens": 10, "temperature": 0}
text = answer.choices[0].message.content
assert "Hello" in text, text
assert answer.choices[0].finish_reason in ("stop", "length")
assert answer.usage.completion_tokens <= 10
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
assert answer.system_fingerprint
assert answer._request_id.startswith("req_")

# A seed gives the same text whole and in pieces; usage comes when asked for.
drawn = ASKED | {"temperature": 0.8, "seed": 7}
chunks = client.chat.completions.create(**drawn, stream=True)
assert (
    "".join(c.choices[0].delta.content or "" for c in chunks)
    == client.chat.completions.create(**drawn).choices[0].message.content
)
chunks = [*client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})]
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
with client.chat.completions.stream(**ASKED, stop=",") as stream:  # it insists on an answer that ends by itself
    events = [event.type for event in stream]
    assert stream.get_final_completion().choices[0].message.content == text.split(",")[0]
assert "content.delta" in events


async def concurrently() -> None:
    async with openai.AsyncOpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none") as fleet:
        first, second, stream = await asyncio.gather(
            fleet.chat.completions.create(**ASKED),
            fleet.completions.create(model="smollm2", prompt="1, 2, 3, 4,", max_tokens=8, temperature=0),
            fleet.chat.completions.create(**ASKED, stream=True),
        )
        assert first.choices[0].message.content == text
        assert "5" in second.choices[0].text
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == text


asyncio.run(concurrently())


class Person(BaseModel):
    name: str
    age: int


told = [{"role": "user", "content": "Ann is 31 years old. Give her name and age."}]
parsed = client.chat.completions.parse(model="smollm2", messages=told, response_format=Person, temperature=0)
assert isinstance(parsed.choices[0].message.parsed, Person), parsed

weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
turns = [{"role": "user", "content": "How is the weather in Oslo?"}]
called = client.chat.completions.create(
    model="smollm2", messages=turns, tools=[weather], tool_choice="required", parallel_tool_calls=False, temperature=0
)
assert called.choices[0].finish_reason == "tool_calls", called
(call,) = called.choices[0].message.tool_calls
assert call.function.name == "weather"
assert set(json.loads(call.function.arguments)) == {"city"}
turns += [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Rain all day."}]
assert client.chat.completions.create(model="smollm2", messages=turns, tools=[weather], max_tokens=5).choices

likely = client.chat.completions.create(**ASKED | {"max_tokens": 3}, logprobs=True, top_logprobs=2, n=2)
assert len(likely.choices) == 2
assert all(len(token.top_logprobs) == 2 for token in likely.choices[0].logprobs.content)

vectors = client.embeddings.create(model="smollm2", input=["blue sky", "red wine"])  # asks for base64 by itself
plain = client.embeddings.create(model="smollm2", input=["blue sky", "red wine"], encoding_format="float")
assert len(vectors.data) == 2
assert len(vectors.data[0].embedding) == len(plain.data[0].embedding) > 100
assert all(abs(a - b) < 1e-6 for a, b in zip(vectors.data[1].embedding, plain.data[1].embedding, strict=True))
assert vectors.usage.prompt_tokens > 0

response = client.responses.create(model="smollm2", input="Say hi.", max_output_tokens=10, temperature=0)
assert response.output_text == text, response
assert response.usage.output_tokens == answer.usage.completion_tokens
with client.responses.stream(model="smollm2", input="Say hi.", max_output_tokens=10, temperature=0) as events:
    seen = [*events]
assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == text
assert (seen[0].type, seen[-1].type) == ("response.created", "response.incomplete")  # cut off by max_output_tokens

assert {model.id: model for model in client.models.list()}["smollm2"].context_length > 0
assert client.models.retrieve("smollm2").owned_by == "packtrain"


def refused(kind: type[openai.APIStatusError], url: str = "http://127.0.0.1:8080/v1", **fields: object) -> dict:
    try:
        OpenAI(base_url=url, api_key="none", max_retries=0).chat.completions.create(**ASKED | fields)
    except kind as error:
        assert error.request_id
        return {"code": error.code, "param": error.param, "headers": error.response.headers}
    raise AssertionError(f"no {kind.__name__} with {fields}")


assert refused(openai.NotFoundError, model="nobody")["code"] == "model_not_found"
assert refused(openai.BadRequestError, temperature=9)["param"] == "temperature"
long = [{"role": "user", "content": "long " * 20_000}]
assert refused(openai.BadRequestError, messages=long)["code"] == "context_length_exceeded"
assert refused(openai.BadRequestError, messages=long, stream=True)["code"] == "context_length_exceeded"
full = refused(openai.RateLimitError, url=os.environ["FULL_GATEWAY"] + "/v1", model="busy")
assert full["code"] == "queue_full"
assert int(full["headers"]["retry-after"]) >= 1
