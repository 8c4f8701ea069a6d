"""The likely cause of what is wrong with a row, by its likeness to corrupted anchors, and how sure that is.

What is wrong with a corrupted anchor is known. A multinomial logistic regression learns from the copies that the trust
gate notices, and from the anchors themselves, to tell causes apart by what answers look like (`profiles`); all causes
count alike. Kinds of corruption that look the same share a cause: an answer to another question and another picture,
for one, when the questions are alike.

A cause is named where three things hold; else the row is "unsure".

- Its probability is at least two thirds, and such that of the corrupted anchors that are named so, others having been
  learned from, 95 % are named rightly.
- The row is not more like an anchor.
- The row is no farther from the copies with that cause, at the third nearest one, than 95 % of these are from copies of
  other anchors. A row that is has an error of a kind that was not tried ("new_kind"), which a regression would put to
  the nearest cause with much confidence.

Sources: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 4.4 (logistic regression); Knorr and Ng,
Algorithms for mining distance-based outliers (1998).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, softmax

from onesteptrain.reporting.diagnosis.measured import Values

Cause = Literal["wrong_step", "mismatch", "foreign_text", "cut_off", "bare_answer", "new_kind", "unsure"]

CAUSES: tuple[Cause, ...] = get_args(Cause)

KINDS_OF: Mapping[Cause, tuple[str, ...]] = MappingProxyType(
    {
        "wrong_step": ("wrong_step", "wrong_result", "carried_error", "wrong_choice"),
        "mismatch": ("other_answer", "other_picture", "blank_picture"),
        "foreign_text": ("foreign_sentence", "shuffled_steps"),
        "cut_off": ("cut_off",),
        "bare_answer": ("bare_answer",),
    }
)
"""The kinds of corrupted anchors that each cause is learned from."""

_CAUSE_OF = {kind: cause for cause, kinds in KINDS_OF.items() for kind in kinds}

_LIKE_ANCHORS = "like_anchors"

_LEAST_PROBABILITY = 2 / 3
_PRECISION = 0.95
_NEAR = 0.95
_NEIGHBOUR = 3
_FOLDS = 5
_RIDGE = 5 / 3
"""Penalty on squared weights, over the number of examples."""

_FEWEST_COPIES = 5
"""Of a cause; one with fewer is not learned."""


class Examples(NamedTuple):
    """Anchors, and their copies with a known error that is noticed."""

    profiles: Values
    labels: NDArray[np.str_]
    """Kind of corruption; empty for an anchor as it is."""

    anchors: Sequence[str]
    """Uid of the anchor of each."""


class Causes(NamedTuple):
    """The causes of some rows."""

    named: Sequence[Cause]
    confidence: Values
    """Probability of the named cause; NaN where none is named."""

    level: float
    """Probability from which on a cause is named; NaN where no cause could be learned."""

    precision: float
    """Share of the corrupted anchors named at that level that are named rightly, each by what was learned of others."""


def likely_causes(rows: Values, examples: Examples) -> Causes:
    """Name the likely cause of each row.

    Args:
        rows: Profiles.
        examples: What causes are learned from.
    """
    known = _learnable(examples)
    if len(set(known.labels)) < 2 or not len(rows):
        return Causes(["unsure"] * len(rows), np.full(len(rows), np.nan), np.nan, np.nan)
    level, precision = _choose_level(known)
    found = _learn(known).guess(rows)
    named = [_name(guess, level) for guess in found]
    confidence = [guess.probability if cause in KINDS_OF else np.nan for guess, cause in zip(found, named, strict=True)]
    return Causes(named, np.array(confidence), level, precision)


class _Guess(NamedTuple):
    cause: str
    """The likeliest."""

    probability: float
    near: bool
    """Whether it is as near to examples of this cause as these are to each other."""


def _name(guess: _Guess, level: float) -> Cause:
    if guess.cause == _LIKE_ANCHORS:
        return "unsure"
    if not guess.near:
        return "new_kind"
    cause: Cause = guess.cause if guess.probability >= level else "unsure"  # type: ignore[assignment]  # of KINDS_OF
    return cause


class _Learned(NamedTuple):
    """A regression, and the examples that rows must be near to."""

    middle: Values
    scale: Values
    weights: Values
    """ "cause number", the last number being the bias."""

    labels: list[str]
    trees: list[KDTree]
    reach: list[float]

    def guess(self, rows: Values) -> list[_Guess]:
        """The likeliest cause of each row."""
        standard = (rows - self.middle) / self.scale
        probability = softmax(standard @ self.weights[:, :-1].T + self.weights[:, -1], axis=1)
        best = probability.argmax(1)
        near = np.zeros(len(rows), np.bool_)
        for place, (tree, reach) in enumerate(zip(self.trees, self.reach, strict=True)):
            mine = best == place
            if mine.any():
                near[mine] = tree.query(standard[mine], k=[min(_NEIGHBOUR, tree.n)])[0][:, 0] <= reach
        told = zip(best, probability.max(1), near, strict=True)
        return [_Guess(self.labels[place], float(highest), bool(close)) for place, highest, close in told]


def _learnable(examples: Examples) -> Examples:
    """By cause in place of kind; causes with too few copies are left out."""
    causes = np.array([_CAUSE_OF.get(kind, kind) if kind else _LIKE_ANCHORS for kind in examples.labels], np.str_)
    counts = dict(zip(*np.unique(causes, return_counts=True), strict=True))
    kept = np.array([counts[cause] >= _FEWEST_COPIES for cause in causes], np.bool_)
    return _some(examples._replace(labels=causes), kept)


def _some(examples: Examples, kept: NDArray[np.bool_]) -> Examples:
    anchors = [anchor for anchor, keep in zip(examples.anchors, kept, strict=True) if keep]
    return Examples(examples.profiles[kept], examples.labels[kept], anchors)


def _choose_level(examples: Examples) -> tuple[float, float]:
    """The lowest probability at which enough of the copies are named rightly, cross-validated over the anchors."""
    order = {anchor: place for place, anchor in enumerate(sorted(set(examples.anchors)))}
    fold = np.array([order[anchor] % _FOLDS for anchor in examples.anchors])
    probability, right = [], []
    for part in np.unique(fold):
        others, mine = _some(examples, fold != part), _some(examples, fold == part)
        for guess, label in zip(_learn(others).guess(mine.profiles), mine.labels, strict=True):
            if guess.near and guess.cause != _LIKE_ANCHORS:
                probability.append(guess.probability)
                right.append(guess.cause == label)
    order_down = np.argsort(-np.array(probability), kind="stable")
    levels, hits = np.array(probability)[order_down], np.array(right, np.float64)[order_down]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    reaching = levels[precisions >= _PRECISION]
    level = max(_LEAST_PROBABILITY, float(reaching.min()) if len(reaching) else 1.0)
    above = int((levels >= level).sum())
    return level, float(precisions[above - 1]) if above else np.nan


def _learn(examples: Examples) -> _Learned:
    """Learn to tell the causes apart."""
    labels, codes = np.unique(examples.labels, return_inverse=True)
    deviation = examples.profiles.std(axis=0)
    middle, scale = examples.profiles.mean(axis=0), np.where(deviation > 1e-12, deviation, 1.0)
    standard = (examples.profiles - middle) / scale
    parts = [standard[codes == code] for code in range(len(labels))]
    apart = cdist(standard, standard)
    owners = np.unique(examples.anchors, return_inverse=True)[1]
    apart[owners[:, None] == owners] = np.inf
    reach = [_reach(apart[np.ix_(codes == code, codes == code)]) for code in range(len(labels))]
    weights = _regress(standard, codes, len(labels))
    return _Learned(middle, scale, weights, labels.tolist(), [KDTree(part) for part in parts], reach)


def _reach(apart: Values) -> float:
    """How far most examples of a cause are from those of other anchors."""
    place = min(_NEIGHBOUR, len(apart)) - 1
    far = np.sort(apart, axis=1)[:, place]
    return float(np.quantile(far[np.isfinite(far)], _NEAR)) if np.isfinite(far).any() else np.inf


def _regress(standard: Values, codes: NDArray[np.int64], causes: int) -> Values:
    """Weights of a multinomial logistic regression in which all causes count alike."""
    count, numbers = standard.shape
    shares = 1 / (np.bincount(codes, minlength=causes)[codes] * causes)
    inputs = np.concatenate([standard, np.ones((count, 1))], axis=1)
    truth = np.eye(causes)[codes]
    penalised = np.append(np.full(numbers, _RIDGE / count), 0.0)

    def loss(flat: Values) -> tuple[float, Values]:
        weights = flat.reshape(causes, numbers + 1)
        logs = log_softmax(inputs @ weights.T, axis=1)
        pull = shares[:, None] * (np.exp(logs) - truth)
        value = -(shares @ (logs * truth).sum(1)) + (penalised * weights**2).sum()
        return float(value), (pull.T @ inputs + 2 * penalised * weights).ravel()

    weights: Values = minimize(loss, np.zeros(causes * (numbers + 1)), jac=True).x.reshape(causes, numbers + 1)
    return weights
