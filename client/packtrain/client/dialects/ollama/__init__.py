"""Ollama's API: its requests as OpenAI's, its answers, and the fleet's models as it lists them."""
