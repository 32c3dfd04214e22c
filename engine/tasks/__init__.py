"""The teacher's roles: each a pure `build(item) -> messages`, with its prompt text in view."""
