"""A process that has a terminal of its own, which can be lost.

async with on_terminal("generate", pool, ...) as command: ... command.hang_up(); code = await command.ended()
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from tests.support.cli import environment


class OnTerminal:
    """`shown` is what it has written so far."""

    def __init__(self, process: asyncio.subprocess.Process, ours: int) -> None:
        self.process, self.shown = process, bytearray()
        self._ours: int | None = ours
        asyncio.get_running_loop().add_reader(ours, self._read)

    def _read(self) -> None:
        assert self._ours is not None
        try:
            self.shown += os.read(self._ours, 65536)
        except OSError:  # nobody has it open at the moment
            asyncio.get_running_loop().remove_reader(self._ours)

    def hang_up(self) -> None:
        """As when a window is closed or a connection is lost."""
        if self._ours is not None:
            asyncio.get_running_loop().remove_reader(self._ours)
            os.close(self._ours)
            self._ours = None

    async def ended(self, seconds: float = 60) -> int:
        async with asyncio.timeout(seconds):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def on_terminal(
    *words: object,
    before: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    stderr: int | None = None,
    cwd: Path | None = None,
) -> AsyncIterator[OnTerminal]:
    """`distill WORDS...` as the leader of a terminal's session. before: words in front, `nohup`. stderr:
    where that goes instead."""
    ours, its = pty.openpty()

    def lead() -> None:
        os.setsid()
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *before, sys.executable, "-P", "-m", "engine", *map(str, words),
        stdin=its, stdout=its, stderr=its if stderr is None else stderr,
        env=dict(env or environment(TERM="xterm")), preexec_fn=lead, cwd=cwd,
    )  # fmt: skip
    os.close(its)
    command = OnTerminal(process, ours)
    try:
        yield command
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        command.hang_up()
