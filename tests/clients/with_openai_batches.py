"""openai-python: files and batches."""
# /// script
# dependencies = ["openai>=3.57,<4"]
# ///

import json
import time

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")

rows = [
    {
        "custom_id": f"fruit-{n}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "smollm2", "messages": [{"role": "user", "content": f"Name fruit {n}."}], "max_tokens": 8},
    }
    for n in range(8)
]
content = "".join(json.dumps(row) + "\n" for row in rows).encode()
file = client.files.create(file=("fruits.jsonl", content), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "cancelled", "expired"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)
for line in client.files.content(batch.output_file_id).text.splitlines():
    row = json.loads(line)
    print(row["custom_id"], row["response"]["body"]["choices"][0]["message"]["content"])
# --- end of what docs/clients.md shows

import openai

assert batch.status == "completed", batch
assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (8, 8, 0)
answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
assert sorted(answer["custom_id"] for answer in answers) == [row["custom_id"] for row in rows]
assert all(answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers)
assert batch.error_file_id is None
assert batch.in_progress_at <= batch.completed_at <= batch.expires_at

assert client.files.retrieve(file.id) == file
assert client.files.content(file.id).content == content
assert file.id in [each.id for each in client.files.list(purpose="batch", limit=1)]  # the pages behind it, too
assert batch.id in [each.id for each in client.batches.list(limit=1)]
try:
    client.batches.cancel(batch.id)
except openai.ConflictError as error:
    assert error.code == "batch_over"
else:
    raise AssertionError("a completed batch was cancelled")

broken = client.files.create(file=("broken.jsonl", b"no json\n"), purpose="batch")
failed = client.batches.create(input_file_id=broken.id, endpoint="/v1/chat/completions", completion_window="24h")
while failed.status == "validating":
    time.sleep(0.5)
    failed = client.batches.retrieve(failed.id)
assert failed.status == "failed"
assert [(fault.line, fault.code) for fault in failed.errors.data] == [(1, "invalid_json_line")]

assert client.files.delete(file.id).deleted
try:
    client.files.retrieve(file.id)
except openai.NotFoundError as error:
    assert error.code == "file_not_found"
else:
    raise AssertionError("a deleted file is still there")
