"""LiteLLM: chats, streams, embeddings and its errors, with the provider `openai/`."""
# /// script
# dependencies = ["litellm>=1.110,<2"]
# ///

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches prices when it is imported

import litellm

answer = litellm.completion(
    model="openai/smollm2",
    api_base="http://127.0.0.1:8080/v1",
    api_key="none",
    messages=[{"role": "user", "content": "Say hi."}],
    max_tokens=10,
    temperature=0,
)
print(answer.choices[0].message.content)
# --- end of what docs/clients.md shows

ASKED = {
    "model": "openai/smollm2",
    "api_base": "http://127.0.0.1:8080/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "Say hi."}],
    "max_tokens": 10,
    "temperature": 0,
}
text = answer.choices[0].message.content
assert "Hello" in text, text
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
pieces = [*litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True})]
assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == text

one, two = litellm.embedding(
    model="openai/smollm2", api_base="http://127.0.0.1:8080/v1", api_key="none", input=["blue sky", "red wine"]
).data
assert len(one["embedding"]) == len(two["embedding"]) > 100

for wrong, url, kind in (
    ({"model": "openai/nobody"}, "http://127.0.0.1:8080", litellm.NotFoundError),
    ({"messages": [{"role": "user", "content": "long " * 20_000}]}, "http://127.0.0.1:8080", litellm.BadRequestError),
    ({"model": "openai/busy"}, os.environ["FULL_GATEWAY"], litellm.RateLimitError),
):
    try:
        litellm.completion(**ASKED | wrong | {"api_base": url + "/v1"}, num_retries=0, max_retries=0)
    except kind:
        continue
    raise AssertionError(f"no {kind.__name__} with {wrong}")
