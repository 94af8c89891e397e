"""The engine: many sequences decoded in one batch, joining and leaving at any token."""
