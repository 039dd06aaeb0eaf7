"""Fits the demo's two probes: which tokens they learn from, which layer and aggregator work on unseen topics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

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
PENALTIES: Final = (0.1, 1.0)  # C of scikit-learn, on standardised activations
EXCLUDE_FIRST: Final = 1  # <|bos|> has no content and a huge norm
NUM_LAST: Final = (
    2  # the end token of the user's turn and <|assistant|>: here the model has understood the request
)
_ROUNDS: Final = 2
_HARD_TOKENS: Final = 4  # per benign exchange and round


@dataclass(frozen=True, slots=True)
class Goal:
    """What a probe is to find, in one phase. Negative tokens: all of that phase in an exchange where the truth is false.

    Positive tokens: of a prompt the last ones, where the model has understood all of it; of a reply all.
    """

    name: str
    phase: Literal["prompt", "response"]
    truth: Callable[[Exchange], bool]

    def judges(self, exchange: Exchange) -> bool:
        """Whether the exchange has this phase. Steered replies are no further examples of prompts."""
        return bool(exchange.reply_ids) if self.phase == "response" else not exchange.strength

    def usable(self, exchange: Exchange) -> bool:
        """Of a harmful prompt of several turns the corpus does not say which turn it was: left out of fitting."""
        num_turns = sum(message["role"] == "user" for message in exchange.row.messages)
        return self.phase == "response" or num_turns == 1 or not self.truth(exchange)

    def scope(self, exchange: Exchange) -> slice:
        """The tokens that this goal's score is read on."""
        end = len(exchange.prompt_ids)
        return slice(EXCLUDE_FIRST, end) if self.phase == "prompt" else slice(end, None)

    def positives(self, exchange: Exchange) -> slice:
        end = len(exchange.prompt_ids)
        return slice(end - NUM_LAST, end) if self.phase == "prompt" else slice(end, None)


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
    separation: float  # of the two means, in standard deviations: decides between equals


def is_validation(row: Row) -> bool:
    """A quarter of the topics (verb-noun pairs, items), whole."""
    return bucket(f"validation {row.topic}", 4) == 0


def fit(goal: Goal, samples: Sequence[Sample]) -> tuple[Linear, Trial, list[Trial]]:
    """Sweep on the training topics against the validation topics, then refit the best setting on all of them."""
    samples = [sample for sample in samples if goal.judges(sample.exchange)]
    usable = [sample for sample in samples if goal.usable(sample.exchange)]
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


def _merit(trial: Trial) -> tuple[float, float]:
    return round(trial.auroc + trial.tpr, 3), trial.separation


def _fit_one(goal: Goal, samples: Sequence[Sample], layer: int, penalty: float) -> Linear:
    """Logistic regression on tokens. Negatives first at random, then those that the probe of the round before flags most:
    what counts is the largest score of a request, so every token of a harmless one must stay low."""
    rng = np.random.default_rng(0)
    positives = [s.acts[layer, goal.positives(s.exchange)] for s in samples if goal.truth(s.exchange)]
    benign = [s.acts[layer, goal.scope(s.exchange)] for s in samples if not goal.truth(s.exchange)]
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
    truth = np.array([goal.truth(s.exchange) for s in samples])
    weight = probe.weight[0].numpy()[:, None]
    maxima = []
    for s in samples:
        raw = s.acts[layer, goal.scope(s.exchange)] @ weight
        maxima.append(running(aggregator, raw).max())
    scores = np.array(maxima)
    spread = np.sqrt((scores[truth].var() + scores[~truth].var()) / 2)
    separation = float((scores[truth].mean() - scores[~truth].mean()) / spread)
    return Trial(layer, penalty, aggregator, auroc(truth, scores), tpr_at(truth, scores, 0.01), separation)
