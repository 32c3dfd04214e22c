"""How every test runs: hypothesis draws the same examples each time, and a busy machine fails none."""

from hypothesis import settings

settings.register_profile("distill", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("distill")
