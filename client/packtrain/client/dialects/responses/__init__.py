"""OpenAI's Responses API, without its memory: requests as OpenAI's chats, answers as items, streams as typed events."""
