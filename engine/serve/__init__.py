"""Servers with the OpenAI chat API on loopback: transformers folders, GGUF models, a scripted teacher."""
