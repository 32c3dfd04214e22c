"""Everything between a pool of instructions and stored answers."""

__version__ = "0.1.0"
