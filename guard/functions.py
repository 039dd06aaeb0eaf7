"""The functions of the condition language: one class each, an aggregate over a stream of numbers, O(1) per token.

A function `over` a series is fed the scores; one over a test is fed whether each score passed it. Tokens without
a score are never fed, so a window is a window of judged tokens. To add a function: one class and one row in FUNCTIONS.
"""

from collections import deque
from collections.abc import Sequence
from math import fsum, inf
from typing import ClassVar, Literal, Protocol

Range = tuple[float, float]
Over = Literal["series", "test"]
TakesWindow = Literal["optional", "required", "refused"]


class Aggregate(Protocol):
    """The running value of one function over one stream. `window` 0 means all tokens so far."""

    over: ClassVar[Over]
    takes_window: ClassVar[TakesWindow]
    waits: ClassVar[bool]
    """Unknown until the window is full. Functions that only grow as a window fills need not wait."""

    value: float | None
    """None: unknown, because fewer than `need` tokens were fed."""

    def __init__(self, window: int, need: int) -> None: ...

    def push(self, x: float) -> None: ...

    def extend(self, xs: Sequence[float]) -> None:
        """Push many. The result is the same, to the last bit, as pushing one by one."""
        ...

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        """The range of `value` when scores lie in [low, high]."""
        ...


class Max:
    """The largest score."""

    over: ClassVar[Over] = "series"
    takes_window: ClassVar[TakesWindow] = "optional"
    waits: ClassVar[bool] = False
    _sign: ClassVar[float] = 1.0

    __slots__ = ("_best", "_need", "_rivals", "_seen", "_window", "value")

    def __init__(self, window: int, need: int) -> None:
        self.value: float | None = None
        self._window = window
        self._need = need
        self._seen = 0
        self._best = -inf
        # (token, score), largest first: those in the window that nothing later has beaten, so that each may yet lead
        self._rivals: deque[tuple[int, float]] = deque()

    def push(self, x: float) -> None:
        seen = self._seen = self._seen + 1
        x *= self._sign
        if not self._window:
            self._best = max(self._best, x)
        else:
            rivals = self._rivals
            while rivals and rivals[-1][1] <= x:
                rivals.pop()
            rivals.append((seen, x))
            if rivals[0][0] <= seen - self._window:
                rivals.popleft()
            self._best = rivals[0][1]
        if seen >= self._need:
            self.value = self._best * self._sign

    def extend(self, xs: Sequence[float]) -> None:
        if not self._window and xs:
            self._seen += len(xs) - 1
            self.push(max(xs) if self._sign > 0 else min(xs))
            return
        skipped = len(xs) - self._window
        if skipped > 0:
            self._seen += skipped
            self._rivals.clear()
            xs = xs[skipped:]
        for x in xs:
            self.push(x)

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        return low, high


class Min(Max):
    """The smallest score. It waits, because a partial window has seen too few scores to be called low."""

    waits = True
    _sign = -1.0
    __slots__ = ()


class Mean:
    """The arithmetic mean."""

    over: ClassVar[Over] = "series"
    takes_window: ClassVar[TakesWindow] = "optional"
    waits: ClassVar[bool] = True

    __slots__ = ("_need", "_recent", "_seen", "_total", "_window", "value")

    def __init__(self, window: int, need: int) -> None:
        self.value: float | None = None
        self._window = window
        self._need = need
        self._seen = 0
        self._total = 0.0
        self._recent: deque[float] = deque()

    def push(self, x: float) -> None:
        seen = self._seen = self._seen + 1
        self._total += x
        length = seen
        if self._window:
            recent = self._recent
            recent.append(x)
            if len(recent) > self._window:
                self._total -= recent.popleft()
            if seen % self._window == 0:  # once per window, so that rounding cannot build up
                self._total = fsum(recent)
            length = len(recent)
        if seen >= self._need:
            self.value = self._total / length

    def extend(self, xs: Sequence[float]) -> None:
        if not self._window and xs:
            for x in xs[:-1]:  # one by one: another order of adding could round differently
                self._total += x
            self._seen += len(xs) - 1
            xs = xs[-1:]
        # Two windows hold the last exact sum and everything after it: what came before leaves no trace.
        skipped = max(0, len(xs) - 2 * self._window) if self._window else 0
        self._seen += skipped
        for x in xs[skipped:]:
            self.push(x)

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        return low, high


class Frac(Mean):
    """The fraction of tokens that passed the test."""

    over: ClassVar[Over] = "test"
    __slots__ = ()

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        return 0.0, 1.0


class Last:
    """The newest score."""

    over: ClassVar[Over] = "series"
    takes_window: ClassVar[TakesWindow] = "refused"
    waits: ClassVar[bool] = False

    __slots__ = ("_need", "_seen", "value")

    def __init__(self, window: int, need: int) -> None:
        self.value: float | None = None
        self._need = need
        self._seen = 0

    def push(self, x: float) -> None:
        self._seen += 1
        if self._seen >= self._need:
            self.value = x

    def extend(self, xs: Sequence[float]) -> None:
        if xs:
            self._seen += len(xs) - 1
            self.push(xs[-1])

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        return low, high


class Ema:
    """The exponential moving average with alpha = 2 / (window + 1), starting from 0."""

    over: ClassVar[Over] = "series"
    takes_window: ClassVar[TakesWindow] = "required"
    waits: ClassVar[bool] = False

    __slots__ = ("_alpha", "_average", "_need", "_seen", "value")

    def __init__(self, window: int, need: int) -> None:
        self.value: float | None = None
        self._alpha = 2 / (window + 1)
        self._average = 0.0
        self._need = need
        self._seen = 0

    def push(self, x: float) -> None:
        self._seen += 1
        self._average += self._alpha * (x - self._average)
        if self._seen >= self._need:
            self.value = self._average

    def extend(self, xs: Sequence[float]) -> None:
        for x in xs:
            self.push(x)

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        return min(0.0, low), max(0.0, high)


class Count:
    """How many tokens passed the test."""

    over: ClassVar[Over] = "test"
    takes_window: ClassVar[TakesWindow] = "optional"
    waits: ClassVar[bool] = False

    __slots__ = ("_need", "_recent", "_seen", "_total", "_window", "value")

    def __init__(self, window: int, need: int) -> None:
        self.value: float | None = None
        self._window = window
        self._need = need
        self._seen = 0
        self._total = 0
        self._recent: deque[bool] = deque()

    def push(self, x: float) -> None:
        self._seen += 1
        passed = bool(x)
        self._total += passed
        if self._window:
            recent = self._recent
            recent.append(passed)
            if len(recent) > self._window:
                self._total -= recent.popleft()
        if self._seen >= self._need:
            self.value = self._total

    def extend(self, xs: Sequence[float]) -> None:
        skipped = max(0, len(xs) - (self._window or 1))
        self._seen += skipped
        if not self._window:
            self._total += sum(map(bool, xs[:skipped]))
        for x in xs[skipped:]:
            self.push(x)

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        return 0.0, float(window or inf)


class Run:
    """The longest run of consecutive tokens that passed the test."""

    over: ClassVar[Over] = "test"
    takes_window: ClassVar[TakesWindow] = "optional"
    waits: ClassVar[bool] = False

    __slots__ = ("_need", "_runs", "_seen", "_window", "value")

    def __init__(self, window: int, need: int) -> None:
        self.value: float | None = None
        self._window = window
        self._need = need
        self._seen = 0
        # [first token, token after the last], longest first: a run is forgotten once a later one is as long
        self._runs: deque[list[int]] = deque()

    def push(self, x: float) -> None:
        token = self._seen
        self._seen = token + 1
        runs = self._runs
        if x:
            if runs and runs[-1][1] == token:
                runs[-1][1] = token + 1
            else:
                runs.append([token, token + 1])
            newest = runs[-1]
            while len(runs) > 1 and runs[-2][1] - runs[-2][0] <= newest[1] - newest[0]:
                del runs[-2]
        if self._window:
            self._forget_before(token + 1 - self._window)
        if self._seen >= self._need:
            self.value = runs[0][1] - runs[0][0] if runs else 0

    def _forget_before(self, start: int) -> None:
        """Cut the oldest run at the window's edge, and drop it once it is no longer the longest."""
        runs = self._runs
        while runs and runs[0][0] < start:
            oldest = runs[0]
            oldest[0] = start
            length = oldest[1] - start
            if length > 0 and (len(runs) == 1 or length > runs[1][1] - runs[1][0]):
                return
            runs.popleft()

    def extend(self, xs: Sequence[float]) -> None:
        skipped = max(0, len(xs) - self._window) if self._window else 0
        self._seen += skipped  # the gap ends an open run; what lies before the window is forgotten
        for x in xs[skipped:]:
            self.push(x)

    @staticmethod
    def reach(low: float, high: float, window: int) -> Range:
        return 0.0, float(window or inf)


FUNCTIONS: dict[str, type[Aggregate]] = {
    "max": Max,
    "min": Min,
    "mean": Mean,
    "last": Last,
    "ema": Ema,
    "count": Count,
    "frac": Frac,
    "run": Run,
}
