"""Trying grammars in a process of their own: a client's schema may ask for more time, memory or stack than a server has."""

import json
import subprocess
import sys
from contextlib import suppress
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
        self._is_over = False

    def error(self, source: str) -> str:
        """What llguidance says is wrong with a grammar; "" if nothing is. Raises TrialEndedError, and OSError where none can begin."""
        process = self._running()
        timer = Timer(_WALL_S, process.kill)
        timer.start()
        try:
            answer = self._answer(process, source)
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            raise TrialEndedError
        return answer

    def end(self) -> None:
        """End the process, and with it a trial that runs; none begins any more. Any thread may."""
        self._is_over = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """After `end`, or where it has ended itself: let go of what is left of it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # something else has ended it
        if self._process is None:
            self._process = self._started()
            if self._is_over:  # `end` may have come before there was anything to end
                self._process.kill()
            if self._answer(self._process, self._tokenizer) is None:
                self.close()
                raise OSError("the process that tries schemas does not start")
        return self._process

    @staticmethod
    def _started() -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603  # our own file; isolated, and without the server's environment
            [sys.executable, "-I", child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={},
            start_new_session=True,  # an interrupt at the terminal is the server's to handle
        )

    @staticmethod
    def _answer(process: subprocess.Popen[str], line: object) -> str | None:
        """To one line. None where the process has ended instead."""
        assert process.stdin is not None  # noqa: S101  # it is a pipe
        assert process.stdout is not None  # noqa: S101  # and so is this
        with suppress(OSError):  # what is read tells
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
        read = process.stdout.readline()
        told: str | None = json.loads(read) if read else None
        return told
