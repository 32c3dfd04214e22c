"""The command line many times, quickly: a process that has imported everything forks for each command.

with Zygote(folder) as distill: code, out, err = distill("status", run)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from tests.support.cli import environment

CHILD = """
import json, os, sys
import engine.cli.app, engine.run.status, engine.run.tables, engine.export, engine.check.command
import engine.run.collect
import engine.cli.commands, engine.run.session, engine.cli.crash_report
from engine.provider.tokens import tokenizer_for
tokenizer_for("gpt-4")
for line in sys.stdin:
    told = json.loads(line)
    if not (pid := os.fork()):
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(told[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["distill", *told["words"]]
        code = 0
        try:
            engine.cli.app.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Zygote:
    def __init__(self, folder: Path) -> None:
        self._out, self._err = folder / "zygote.out", folder / "zygote.err"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        assert self._process.stdin
        assert self._process.stdout
        told: dict[str, Any] = {"out": os.fspath(self._out), "err": os.fspath(self._err)}
        self._process.stdin.write(orjson.dumps({**told, "words": [str(w) for w in words]}).decode() + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        out, err = (path.read_bytes().decode(errors="replace") for path in (self._out, self._err))
        return code, out, err
