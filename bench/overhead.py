"""What monitoring costs: tokens per second of the guarded engine against the same engine without monitors.

    python -m bench.overhead [--batch 1 8] [--tokens 24] [--rounds 41]

64 linear probes and 1,000 SAE features over 4 layers of a random 30M-parameter Llama in float32. Both engines run
the whole pipeline (aggregators, a policy of 20 rules or of none) on one model in one process, alternating round by
round. A round gives the median time from one decode step to the next; the figure is the median of the paired ratios.
"""

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import pairwise

import torch
from transformers import LlamaConfig, LlamaForCausalLM, __version__

from guard.policy import Policy, policy_from_text
from guard.types import Subject
from monitors.aggregate import AggregatorSpec
from monitors.artifacts import MonitorSet
from monitors.base import Link, Monitor, Rectifier
from monitors.linear import Linear
from monitors.sae_feature import SaeFeature
from monitors.types import HookPoint
from server.engines.base import EngineRequest, SamplingParams
from server.engines.transformers.engine import EngineSettings, TransformersEngine
from server.engines.transformers.model import prepare
from server.engines.transformers.sequence import Sequence
from server.engines.transformers.stepper import StepResult
from server.pipeline import Choice, guarded
from server.scoring import Scoring

LAYERS, D_MODEL, VOCAB = 8, 512, 8000
MONITORED = (1, 3, 5, 7)
NUM_PROBES, NUM_FEATURES, NUM_RULES = 64, 1000, 20


def build_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=1376,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def build_monitors() -> MonitorSet:
    generator = torch.Generator().manual_seed(1)

    def direction() -> torch.Tensor:
        return torch.randn(D_MODEL, generator=generator) / D_MODEL**0.5

    def probe(index: int) -> Monitor:
        point = HookPoint(MONITORED[index % len(MONITORED)])
        transform = Linear((point,), direction()[None], torch.zeros(1))
        return Monitor(f"probe{index}", transform, AggregatorSpec("ema", alpha=0.12), Link.SIGMOID)

    def feature(index: int) -> Monitor:
        point = HookPoint(MONITORED[index % len(MONITORED)])
        return Monitor(
            f"feature{index}",
            SaeFeature(point, index, direction(), 0.0, direction(), rectifier=Rectifier(threshold=0.5)),
            AggregatorSpec("max"),
        )

    return MonitorSet((*map(probe, range(NUM_PROBES)), *map(feature, range(NUM_FEATURES))), {})


def build_policy(*, with_rules: bool) -> Policy:
    def rule(index: int) -> str:
        when = (
            f"count(response.probe{index} > 0.999999, window=16) >= 12 or max(response.feature{index}) > 1e9"
        )
        return f'  - {{id: r{index}, when: "{when}", then: {{log: {{}}}}}}'

    rules = "\n".join(map(rule, range(NUM_RULES))) if with_rules else "  []"
    text = (
        f"apiVersion: interlock/v1\nkind: Policy\nmetadata: {{name: bench, version: '1'}}\nrules:\n{rules}\n"
    )
    return policy_from_text(text)


class _Silent:
    """An observer that keeps nothing: metrics and the log cost the same with and without monitors."""

    def stepped(self, step: object) -> None: ...
    def decided(self, decision: object, score_s: float, decide_s: float) -> None: ...
    def released(self, num_tokens: int) -> None: ...
    def steered(self, vector: str) -> None: ...
    def ended(self, closed: object, error: object) -> None: ...


class Contestant:
    """One engine with its policy."""

    def __init__(self, model: LlamaForCausalLM, monitors: MonitorSet, policy: Policy, max_batch: int) -> None:
        from tests.tiny_tokenizer import tiny_tokenizer  # noqa: PLC0415  # any tokenizer does: the texts are not read

        loaded = prepare(model, tiny_tokenizer(), model_id="bench")
        settings = EngineSettings(max_batch=max_batch, max_context=512, prefix_cache_tokens=0)
        self.engine = TransformersEngine(loaded, monitors, settings)
        self._scoring = Scoring(self.engine.monitors)
        self._policy = policy
        self._count = 0

    async def run(self, batch: int, tokens: int) -> float:
        """Decode `tokens` for each of `batch` requests; returns the median seconds from one decode step to the next."""
        starts: list[float] = []
        stepper = self.engine._stepper  # noqa: SLF001
        step = stepper.step

        def timed(ready: AbstractSet[Sequence]) -> list[tuple[Sequence, StepResult]]:
            if len(stepper.rows.decoding) == batch:
                starts.append(time.perf_counter())
            return step(ready)

        stepper.step = timed  # type: ignore[method-assign]
        sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)

        async def one(index: int) -> None:
            self._count += 1
            decider = self._policy.decider(Subject(), now=datetime.now(UTC))
            request = EngineRequest(f"{self._count}", [(index * 31 + i) % VOCAB for i in range(64)], sampling)
            choice = Choice(index, request, self._scoring.scorer(decider.monitors), decider, _Silent())
            async with aclosing(guarded(self.engine, choice, time.perf_counter)) as events:
                async for _ in events:
                    pass

        await asyncio.gather(*(one(index) for index in range(batch)))
        stepper.step = step  # type: ignore[method-assign]
        return statistics.median(after - before for before, after in pairwise(starts))


async def measure(batch: int, tokens: int, rounds: int) -> None:
    model = build_model()
    # one model in memory for both: two copies differ by several per cent by where they happen to lie
    bare = Contestant(model, MonitorSet(), build_policy(with_rules=False), batch)
    guarded_engine = Contestant(model, build_monitors(), build_policy(with_rules=True), batch)
    contestants = (bare, guarded_engine)
    for contestant in contestants:
        await contestant.engine.start()
        await contestant.run(batch, tokens)  # warm up
    costs, bare_steps = [], []
    for index in range(rounds):
        order = contestants if index % 2 else contestants[::-1]
        step_s = {id(c): await c.run(batch, tokens) for c in order}
        bare_steps.append(step_s[id(bare)])
        costs.append((step_s[id(guarded_engine)] / step_s[id(bare)] - 1) * 100)
        print(f"  round {index + 1}/{rounds}: {costs[-1]:+.1f} %", end="\r", flush=True)
    print(
        f"batch {batch:3}: bare {batch / statistics.median(bare_steps):7.1f} tok/s; with {NUM_PROBES} probes, "
        f"{NUM_FEATURES} SAE features and {NUM_RULES} rules, time per token {_spread(costs)}"
    )
    for contestant in contestants:
        await contestant.engine.stop()


def _spread(percents: list[float]) -> str:
    low, middle, high = statistics.quantiles(percents, n=4)
    return f"{middle:+.1f} % (quartiles {low:+.1f} … {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=24, help="per response")
    parser.add_argument("--rounds", type=int, default=41, help="pairs of runs; the order alternates")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, transformers {__version__}, {torch.get_num_threads()} threads, "
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, float32"
    )
    for batch in options.batch:
        asyncio.run(measure(batch, options.tokens, options.rounds))


if __name__ == "__main__":
    main()
