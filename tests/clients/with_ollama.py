"""ollama: chats, streams, continued texts, embeddings, and the list of models."""
# /// script
# dependencies = ["ollama>=0.6,<0.7"]
# ///

from ollama import Client

client = Client(host="http://127.0.0.1:8080")

answer = client.chat(
    model="smollm2", messages=[{"role": "user", "content": "Say hi."}], options={"num_predict": 10, "temperature": 0}
)
print(answer.message.content)
# --- end of what docs/clients.md shows

import ollama

OPTIONS = {"num_predict": 10, "temperature": 0}
HI = [{"role": "user", "content": "Say hi."}]
text = answer.message.content
assert "Hello" in text, text
assert 0 < answer.eval_count <= 10
pieces = [*client.chat(model="smollm2", messages=HI, options=OPTIONS, stream=True)]
assert "".join(piece.message.content or "" for piece in pieces) == text
assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
assert pieces[-1].eval_count == answer.eval_count

continued = client.generate(model="smollm2", prompt="1, 2, 3, 4,", raw=True, options=OPTIONS)
assert "5" in continued.response, continued
schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}
formed = client.chat(model="smollm2", messages=HI, format=schema, options={"num_predict": 40, "temperature": 0})
assert '"age"' in formed.message.content, formed

one, two = client.embed(model="smollm2", input=["blue sky", "red wine"]).embeddings
assert len(one) == len(two) > 100
assert "smollm2" in {model.model.removesuffix(":latest") for model in client.list().models}
assert client.show("smollm2").modelinfo

try:
    client.chat(model="nobody", messages=HI)
except ollama.ResponseError as error:
    assert error.status_code == 404, error
else:
    raise AssertionError("no error for an unknown model")
