"""anthropic: messages, streams, tools, the count of tokens, and its errors."""
# /// script
# dependencies = ["anthropic>=2.14,<3"]
# ///

from anthropic import Anthropic

client = Anthropic(base_url="http://127.0.0.1:8080", api_key="none")

message = client.messages.create(
    model="smollm2",
    max_tokens=10,
    messages=[{"role": "user", "content": "Say hi."}],
    extra_body={"temperature": 0},  # version 2 of the package has no argument for it
)
print(message.content[0].text)
# --- end of what docs/clients.md shows

import os

import anthropic

ASKED = {
    "model": "smollm2",
    "max_tokens": 10,
    "extra_body": {"temperature": 0},
    "messages": [{"role": "user", "content": "Say hi."}],
}
text = message.content[0].text
assert "Hello" in text, text
assert message.stop_reason in ("end_turn", "max_tokens")
assert 0 < message.usage.output_tokens <= 10
with client.messages.stream(**ASKED) as stream:
    assert "".join(stream.text_stream) == text
    assert stream.get_final_message().usage.output_tokens == message.usage.output_tokens
counted = client.messages.count_tokens(model="smollm2", messages=ASKED["messages"])
assert counted.input_tokens > 5

weather = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
called = client.messages.create(
    model="smollm2",
    max_tokens=100,
    extra_body={"temperature": 0},
    messages=[{"role": "user", "content": "How is the weather in Oslo?"}],
    tools=[weather],
    tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
)
(use,) = [block for block in called.content if block.type == "tool_use"]
assert called.stop_reason == "tool_use", called
assert use.name == "weather"
assert set(use.input) == {"city"}

for wrong, url, kind in (
    ({"model": "nobody"}, "http://127.0.0.1:8080", anthropic.NotFoundError),
    ({"extra_body": {"temperature": 9}}, "http://127.0.0.1:8080", anthropic.BadRequestError),
    ({"model": "busy"}, os.environ["FULL_GATEWAY"], anthropic.RateLimitError),
):
    try:
        Anthropic(base_url=url, api_key="none", max_retries=0).messages.create(**ASKED | wrong)
    except kind as error:
        assert error.request_id, error
        continue
    raise AssertionError(f"no {kind.__name__} with {wrong}")
