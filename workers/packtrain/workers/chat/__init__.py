"""Chats as models write them: which family a template belongs to, how a prompt is made, how an answer is read."""
