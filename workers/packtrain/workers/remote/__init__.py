"""Remote servers as models: an instance that asks an OpenAI-compatible server instead of computing."""
