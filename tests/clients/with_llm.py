"""The `llm` command of Simon Willison, with our model in its extra-openai-models.yaml."""
# /// script
# dependencies = ["llm>=0.36,<0.37"]
# ///

import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = """\
- model_id: fleet
  model_name: smollm2
  api_base: http://127.0.0.1:8080/v1
  supports_schema: true
"""
# --- end of what docs/clients.md shows

with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "extra-openai-models.yaml").write_text(MODELS)

    def llm(*arguments: str, stdin: str = "") -> str:
        command = [str(Path(sys.executable).parent / "llm"), *arguments]
        env = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    question = ("-m", "fleet", "-o", "max_tokens", "10", "-o", "temperature", "0", "Say hi.")
    text = llm(*question)
    assert "Hello" in text, text
    assert llm("--no-stream", *question) == text
    assert "Hello" in llm("-m", "fleet", "-o", "temperature", "0", "-o", "max_tokens", "10", stdin=question[-1])
    short = ("-o", "max_tokens", "30", "-o", "temperature", "0")
    assert '"name"' in llm("-m", "fleet", *short, "--schema", "name, age int", "Ann is 31 years old.")
    assert "Token usage" in llm("logs", "--usage", "-n", "1")
