"""Everything between a pool of instructions and stored answers."""
