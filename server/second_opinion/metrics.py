"""The metrics of second opinions. Labels are the names of targets and our own words for what came of asking."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guard.types import Answer
from server.breaker import BreakerState
from server.second_opinion.targets import Told

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 20, 30, 60)
_PREFIX = "interlock_second_opinion"


class OpinionMetrics:
    """Children of all targets exist from the start."""

    def __init__(self, registry: CollectorRegistry, targets: Iterable[str]) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, ("target", *labels), registry=registry)

        self._requests = counter("requests_total", "Second opinions by what came of asking.", "outcome")
        self._tokens = counter("tokens_total", "Tokens that targets say they used.", "type")
        self._cost = counter("cost_total", "By the prices in the target's settings, in their currency.")
        self._seconds = Histogram(
            f"{_PREFIX}_seconds",
            "From the match to the answer, or to none.",
            ("target",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._breaker = Gauge(
            f"{_PREFIX}_breaker_state",
            "0: closed, the target is asked; 1: half open, one request is trying; 2: open, it is left alone.",
            ("target",),
            registry=registry,
        )
        for target in targets:
            for answer in Answer:
                if answer is not Answer.UNKNOWN:  # of replays
                    self._requests.labels(target, answer)
            for kind in ("prompt", "completion"):
                self._tokens.labels(target, kind)
            self._cost.labels(target)
            self._seconds.labels(target)

    def told(self, told: Told) -> None:
        """Count what asking a target came to."""
        self._requests.labels(told.target, told.advice.answer).inc()
        self._tokens.labels(told.target, "prompt").inc(told.usage.prompt_tokens)
        self._tokens.labels(told.target, "completion").inc(told.usage.completion_tokens)
        self._cost.labels(told.target).inc(told.cost)
        self._seconds.labels(told.target).observe(told.advice.seconds)

    def watch(self, breakers: Callable[[], Mapping[str, BreakerState]]) -> None:
        """Read the breakers at every scrape."""

        def show(target: str) -> None:
            self._breaker.labels(target).set_function(lambda: breakers()[target])

        for target in breakers():
            show(target)
