"""Talks to a chat-completions server: requests, replies, refusals, usage, tokens, prices, models."""
