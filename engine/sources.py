"""Where the rows of a command's stage come from."""

from engine.settings import Settings
from store.pool import Pool


def pool_of(settings: Settings, source: str) -> Pool:
    """The pool of a task that reads one. Raises PoolError if it cannot be read."""
    return Pool(source)
