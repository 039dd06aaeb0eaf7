"""Trying grammars in a process of their own: a client's schema may ask for more time, memory or stack than a server has."""

import json
import subprocess
import sys
from threading import Timer
from typing import Any

from server.grammars import child

_WALL_S = 60.0  # beside the limit of computing, for a child that waits instead


class TrialEndedError(Exception):
    """A grammar took the process that it was tried in to one of its limits."""


class Trial:
    """The process, begun when it is first needed and again after a grammar has ended it. One thread uses it at a time."""

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        """`tokenizer` is what `child.tokenizer` takes."""
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[str] | None = None

    def error(self, source: str) -> str:
        """What llguidance says is wrong with a grammar; "" if nothing is. Raises TrialEndedError."""
        process = self._process = self._process or self._begun()
        timer = Timer(_WALL_S, process.kill)
        timer.start()
        try:
            answer = self._asked(process, source)
        finally:
            timer.cancel()
        if not answer:
            self.close()
            raise TrialEndedError
        told: str = json.loads(answer)
        return told

    def end(self) -> None:
        """End the process, and with it a trial that runs. Any thread may."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """After `end`, or where it has ended itself: let go of what is left of it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _begun(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603  # our own file; isolated, and without the server's environment
            [sys.executable, "-I", child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={},
            start_new_session=True,  # an interrupt at the terminal is the server's to handle
        )
        self._write(process, self._tokenizer)
        return process

    def _asked(self, process: subprocess.Popen[str], source: str) -> str:
        self._write(process, source)
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        return process.stdout.readline()

    @staticmethod
    def _write(process: subprocess.Popen[str], what: object) -> None:
        assert process.stdin is not None  # noqa: S101  # it is a pipe
        try:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it has ended; so will what is read
