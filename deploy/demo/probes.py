"""Fits the demo's two probes: which tokens they learn from, which layer and aggregator work on unseen topics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from deploy.demo.activations import Exchange
from deploy.demo.corpus.rows import Row, bucket
from deploy.demo.figures import auroc, tpr_at
from monitors.aggregate import AggregatorSpec
from monitors.linear import Linear
from monitors.types import HookPoint

Floats = NDArray[np.floating]

AGGREGATORS: Final = (
    AggregatorSpec("last"),
    AggregatorSpec("ema", alpha=0.5),
    AggregatorSpec("rolling_mean", window=4),
)
PENALTIES: Final = (0.001, 0.01, 0.1)  # C of scikit-learn, on standardised activations
EXCLUDE_FIRST: Final = 1  # <|bos|> has no content and a huge norm
NUM_LAST: Final = (
    2  # the end token of the user's turn and <|assistant|>: here the model has understood the request
)
_ROUNDS: Final = 3
_HARD_TOKENS: Final = 4  # per benign exchange and round


@dataclass(frozen=True, slots=True)
class Goal:
    """What a probe is to find. Positive tokens: where the truth must show. Negative: every token of a negative exchange."""

    name: str
    truth: Callable[[Row], bool]
    in_reply: bool  # whether reply tokens are examples and the reply phase is judged

    def usable(self, row: Row) -> bool:
        """In a positive conversation of several turns the corpus does not say which turn it was: left out of fitting."""
        return not self.truth(row) or row.messages[-2:-1] == [] or row.messages[-2]["role"] == "system"

    def positives(self, exchange: Exchange) -> slice:
        end = len(exchange.prompt_ids)
        return slice(end - NUM_LAST, None if self.in_reply else end)

    def negatives(self, exchange: Exchange) -> slice:
        return slice(EXCLUDE_FIRST, None if self.in_reply else len(exchange.prompt_ids))


@dataclass(frozen=True, slots=True)
class Sample:
    """One exchange with its activations: acts [num_layers, num_tokens, d_model]."""

    exchange: Exchange
    acts: Floats


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of the sweep, with its figures on the validation topics."""

    layer: int
    penalty: float
    aggregator: AggregatorSpec
    auroc: float
    tpr: float  # at 1 % FPR


def is_validation(row: Row) -> bool:
    """A quarter of the topics (verb-noun pairs, items), whole."""
    return bucket(f"validation {row.topic}", 4) == 0


def fit(goal: Goal, samples: Sequence[Sample]) -> tuple[Linear, Trial, list[Trial]]:
    """Sweep on the training topics against the validation topics, then refit the best setting on all of them."""
    usable = [sample for sample in samples if goal.usable(sample.exchange.row)]
    fitted = [sample for sample in usable if not is_validation(sample.exchange.row)]
    validation = [sample for sample in samples if is_validation(sample.exchange.row)]
    trials = []
    for layer, penalty in product(range(samples[0].acts.shape[0]), PENALTIES):
        probe = _fit_one(goal, fitted, layer, penalty)
        trials += [
            _judge(goal, probe, validation, layer=layer, penalty=penalty, aggregator=aggregator)
            for aggregator in AGGREGATORS
        ]
        best = max(trials[-len(AGGREGATORS) :], key=_merit)
        print(
            f"  {goal.name}: blocks.{layer} C={penalty:<6} {best.aggregator.kind:13} "
            f"validation AUROC {best.auroc:.4f}  TPR at 1 % FPR {best.tpr:.3f}",
            flush=True,
        )
    best = max(trials, key=_merit)
    return _fit_one(goal, usable, best.layer, best.penalty), best, trials


def running(aggregator: AggregatorSpec, raw: Floats) -> Floats:
    """The running score after each token. raw: [num_tokens, num_probes]."""
    z = raw.astype(np.float64)
    aggregator.start(z.shape[1]).update(z)
    return z


def _merit(trial: Trial) -> float:
    return trial.auroc + trial.tpr


def _fit_one(goal: Goal, samples: Sequence[Sample], layer: int, penalty: float) -> Linear:
    """Logistic regression on tokens. Negatives first at random, then those that the probe of the round before flags most:
    what counts is the largest score of a request, so every token of a harmless one must stay low."""
    rng = np.random.default_rng(0)
    positives = [s.acts[layer, goal.positives(s.exchange)] for s in samples if goal.truth(s.exchange.row)]
    benign = [s.acts[layer, goal.negatives(s.exchange)] for s in samples if not goal.truth(s.exchange.row)]
    picks = [
        set(rng.choice(len(acts), min(6, len(acts)), replace=False)) | {len(acts) - 1} for acts in benign
    ]
    x_positive = np.concatenate(positives)
    probe = None
    for _ in range(_ROUNDS):
        if probe is not None:
            for acts, pick in zip(benign, picks, strict=True):
                scores = acts @ probe.weight[0].numpy()
                pick.update(np.argsort(scores)[-_HARD_TOKENS:])
        x_negative = np.concatenate([acts[sorted(pick)] for acts, pick in zip(benign, picks, strict=True)])
        probe = _logistic(x_positive, x_negative, layer, penalty)
    return probe


def _logistic(x_positive: Floats, x_negative: Floats, layer: int, penalty: float) -> Linear:
    x = np.concatenate([x_positive, x_negative])
    y = np.repeat([1, 0], [len(x_positive), len(x_negative)])
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=300, tol=1e-3)
    model.fit((x - mean) / std, y)
    weight, bias = torch.tensor(model.coef_, dtype=torch.float32), float(model.intercept_[0])
    return Linear.folded(
        [HookPoint(layer)],
        weight,
        bias,
        torch.tensor(mean, dtype=torch.float32)[None],
        torch.tensor(std, dtype=torch.float32)[None],
    )


def _judge(
    goal: Goal,
    probe: Linear,
    samples: Sequence[Sample],
    *,
    layer: int,
    penalty: float,
    aggregator: AggregatorSpec,
) -> Trial:
    truth = np.array([goal.truth(s.exchange.row) for s in samples])
    weight = probe.weight[0].numpy()[:, None]
    maxima = []
    for s in samples:
        raw = s.acts[layer] @ weight
        end = len(s.exchange.prompt_ids)
        prompt = running(aggregator, raw[EXCLUDE_FIRST:end]).max()
        if (
            goal.in_reply and len(raw) > end
        ):  # both phases count: the worse figure is what the policy lives with
            reply = running(aggregator, raw[end:]).max()
            prompt = min(prompt, reply) if goal.truth(s.exchange.row) else max(prompt, reply)
        maxima.append(prompt)
    scores = np.array(maxima)
    return Trial(layer, penalty, aggregator, auroc(truth, scores), tpr_at(truth, scores, 0.01))
