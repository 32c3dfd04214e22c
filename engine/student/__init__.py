"""A transformers folder (a trained student) behind the OpenAI chat API: `distill serve DIR`.

torch and transformers are imported by `model`, `batch`, `sampling` and `grammar` only, which only the
serving process imports.
"""
