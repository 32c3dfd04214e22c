"""How every test runs: hypothesis draws the same examples each time, and a busy machine fails none.

Torch computes with one thread: what it computes here is small, and threads that wait for each other on a
busy machine took a hundred times as long.

A terminal that is lost is noticed by the processes under test, also where the tests were started by nohup.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.cli import rows, write_pool

settings.register_profile("distill", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("distill")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so does a shell to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where a run folder may come to be."""
    return tmp_path / "run"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Twelve instructions. Files that need more, or others, have a pool of their own."""
    return write_pool(tmp_path / "pool.jsonl", rows(12))


# Models of two layers, made once by each process of the tests, and only read.


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tests.support import tiny

    return tiny.tokenizer()


@pytest.fixture(scope="session")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import tiny

    return tiny.student(tmp_path_factory.mktemp("models") / "pupil")


@pytest.fixture(scope="session")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that reads 300 tokens."""
    from tests.support import tiny

    return tiny.reward_folder(tmp_path_factory.mktemp("models") / "reward")
