"""How much the server holds: places, rows, the KV cache, tasks, memory and files. Read at each scrape; of an idle server always the same."""

from asyncio import AbstractEventLoop, all_tasks
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from server.engines.base import EngineLoad
from server.scheduling.line import Line


class LoadMetrics:
    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"interlock_{name}", text, labels, registry=registry)

        self._model = model
        self.running = gauge("requests_running", "Responses being generated.", "model")
        self.waiting = gauge("requests_waiting", "Responses waiting in line or for a row.", "model")
        self._places = gauge(
            "places_taken", "Places of the line taken by responses that run or are being sent.", "model"
        ).labels(model)
        self.kv_usage = gauge("kv_cache_usage_ratio", "Filled share of the KV cache.")
        self._step_age = gauge(
            "engine_step_age_seconds",
            "Seconds that an engine step runs, or that one is due and does not come; 0 while none is due.",
        )
        self._tasks = gauge("event_loop_tasks", "Tasks of the event loop.")
        ProcessCollector(registry=registry)  # process_*: memory, open files, CPU time

    def watch(self, load: Callable[[], EngineLoad], line: Line) -> None:
        """The engine, and the line before it."""
        self.running.labels(self._model).set_function(lambda: load().running)
        self.waiting.labels(self._model).set_function(lambda: load().waiting + line.waiting)
        self._places.set_function(lambda: line.running)
        self.kv_usage.set_function(lambda: load().kv_tokens / max(1, load().kv_capacity))
        self._step_age.set_function(lambda: load().step_age_s)

    def watch_tasks(self, loop: AbstractEventLoop) -> None:
        """The scrapes must come in the loop's own thread."""
        self._tasks.set_function(lambda: len(all_tasks(loop)))
