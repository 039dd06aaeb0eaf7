"""The thread that runs the model. Unlike an executor's, it is not waited for when the process ends: a step may hang for ever."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class StepThread:
    """Runs one call after the other."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def submit(self, function: Callable[..., _T], *args: Any) -> Future[_T]:
        """Call a function in the thread, which the first call starts."""
        future: Future[_T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except Exception as error:  # noqa: BLE001  # whoever waits is told
                future.set_exception(error)
            except BaseException as error:  # noqa: BLE001  # raised in the event loop, it would end the server at once
                future.set_exception(RuntimeError(f"the thread was ended by {type(error).__name__}"))

        if not self._thread.is_alive():
            self._thread.start()
        self._calls.put(call)
        return future

    def stop(self, timeout_s: float) -> bool:
        """Let the call that runs come to its end; whether it did."""
        self._calls.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
