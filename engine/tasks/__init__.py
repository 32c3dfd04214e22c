"""The teacher's tasks: each a pure `build(item) -> messages` with its prompt in view, and a pure reader."""
