"""Anthropic's Messages API: its requests as OpenAI's chats, its answers, streams and errors."""
