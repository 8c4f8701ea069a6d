"""Compare two arms on the same questions: by how many points they differ, and how sure that is.

Asking both arms the same questions takes out what makes a question hard, so the difference of two accuracies is known
better than either of them. Trainings differ by their seeds too; where arms have several, seeds count as drawn as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, t

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation.results import Graded

_RESAMPLES = 9_999
_CHUNK_CELLS = 4_000_000
"""Resampled questions that are held in memory at a time."""


class Difference(NamedTuple):
    """Accuracy of the first arm minus that of the second, in points (of 100)."""

    value: float
    low: float
    """Lower end of the interval."""

    high: float
    """Upper end of the interval."""

    p_value: float
    """Of no difference, two-sided."""

    wins: int
    """Questions that the first arm gets right more often than the second."""

    losses: int
    """Questions that the second arm gets right more often."""

    ties: int
    """Questions that both get right equally often."""

    confidence: float
    """Share of such intervals that hold the true difference."""

    test: Literal["mcnemar", "bootstrap"]
    """Where the p-value is from: McNemar's exact test of two single runs, else the bootstrap."""


def paired_difference(
    first: Sequence[Bool[NDArray[np.bool_], " question"]],
    second: Sequence[Bool[NDArray[np.bool_], " question"]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """How far two arms are apart.

    With one run an arm the interval is a bootstrap over questions, and the p-value is McNemar's: under no difference, a
    question that only one arm gets right falls to either with probability one half. With several runs an arm, questions
    and runs are resampled independently of each other (the pigeonhole bootstrap), one run fewer than there are, which
    makes the variance between runs unbiased; the ends are moved out as Student's t asks for so few runs. It then speaks
    of trainings with other seeds too, and leans to the wide side.

    Args:
        first: For each run (seed) of the first arm, whether each question was answered rightly.
        second: The same of the second arm, on the same questions in the same order; its runs may be more or fewer.
        confidence: Level of the interval, between 0 and 1.
        seed: Fixes the resampling.

    Raises:
        ConfigError: an arm has no run, the runs differ in length or are empty, or confidence is no level.

    Source: Q. McNemar (1947), Psychometrika 12; A. B. Owen, The pigeonhole bootstrap (2007), Ann. Appl. Stat. 1;
    J. N. K. Rao and C. F. J. Wu (1988), J. Am. Stat. Assoc. 83, for one draw fewer.
    """
    _check(first, second, confidence)
    ours, theirs = np.stack(first).astype(np.float64), np.stack(second).astype(np.float64)
    gaps = np.round(ours.mean(0) - theirs.mean(0), 12)  # 1/3 + 1/3 + 1/3 is 1
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    value = ours.mean() - theirs.mean()
    drawn = np.concatenate(list(_resampled(ours, theirs, np.random.default_rng(seed))))
    stretch = _stretch(ours, theirs, confidence)
    low, high = value + stretch * (np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2]) - value)
    single = len(ours) == len(theirs) == 1
    mcnemar = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Difference(
        value=100 * float(value),
        low=100 * float(low),
        high=100 * float(high),
        p_value=mcnemar if single else _bootstrap_p(value + stretch * (drawn - value)),
        wins=wins,
        losses=losses,
        ties=len(gaps) - wins - losses,
        confidence=confidence,
        test="mcnemar" if single else "bootstrap",
    )


def as_difference(values: Mapping[str, Any]) -> Difference:
    """A difference of the plain values of its fields, among others."""
    return Difference(**{name: values[name] for name in Difference._fields})


def paired_marks(first: Sequence[Graded], second: Sequence[Graded]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which questions two evaluations got right, in the order of the first.

    Raises:
        ConfigError: they are not about the same questions.
    """
    other = {row.uid: row for row in second}
    missing = [row.uid for row in first if row.uid not in other or other[row.uid].answer != row.answer]
    if missing or len(first) != len(second):
        example = f", such as {missing[0]!r}" if missing else ""
        raise ConfigError(
            f"the two evaluations are not about the same questions: {len(first)} and {len(second)} questions, "
            f"{len(missing)} of the first are missing from the second or have another right answer{example}; "
            "evaluate both on one benchmark"
        )
    marks = [(row.correct, other[row.uid].correct) for row in first]
    return np.array([mark for mark, _ in marks], bool), np.array([mark for _, mark in marks], bool)


def _check(first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]], confidence: float) -> None:
    lengths = {len(run) for run in (*first, *second)}
    if not first or not second or len(lengths) != 1 or 0 in lengths:
        raise ConfigError(
            f"arms of {len(first)} and {len(second)} runs on {sorted(lengths)} questions cannot be compared; "
            "each needs at least one run, and all runs the same questions"
        )
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it is a share between 0 and 1, such as 0.95")


def _resampled(
    ours: Float[NDArray[np.float64], "run question"],
    theirs: Float[NDArray[np.float64], "other_run question"],
    random: np.random.Generator,
) -> Iterator[Float[NDArray[np.float64], " draw"]]:
    """Differences of redrawn runs on redrawn questions; scipy.stats.bootstrap redraws along one axis only."""
    questions = ours.shape[1]
    chunk = max(1, _CHUNK_CELLS // questions)
    for start in range(0, _RESAMPLES, chunk):
        draws = min(chunk, _RESAMPLES - start)
        chosen = random.integers(questions, size=(draws, questions)) + questions * np.arange(draws)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=draws * questions).reshape(draws, questions) / questions
        yield _redrawn_runs(weights @ ours.T, random) - _redrawn_runs(weights @ theirs.T, random)


def _redrawn_runs(
    accuracies: Float[NDArray[np.float64], "draw run"], random: np.random.Generator
) -> Float[NDArray[np.float64], " draw"]:
    draws, runs = accuracies.shape
    chosen = random.integers(runs, size=(draws, max(1, runs - 1)))
    mean: NDArray[np.float64] = np.take_along_axis(accuracies, chosen, axis=1).mean(1)
    return mean


def _stretch(ours: NDArray[np.float64], theirs: NDArray[np.float64], confidence: float) -> float:
    """By how much Student's t reaches further than the normal distribution, with Welch's degrees of freedom."""
    runs = [(arm.mean(1).var(ddof=1) / len(arm), len(arm) - 1) for arm in (ours, theirs) if len(arm) > 1]
    over_questions = (ours.mean(0) - theirs.mean(0)).var() / ours.shape[1]
    total = over_questions + sum(variance for variance, _ in runs)
    if not runs or total == 0:
        return 1.0
    freedom = total**2 / (
        over_questions**2 / max(1, ours.shape[1] - 1) + sum(variance**2 / degrees for variance, degrees in runs)
    )
    level = 0.5 + confidence / 2
    return float(t.ppf(level, freedom) / norm.ppf(level))


def _bootstrap_p(drawn: Float[NDArray[np.float64], " draw"]) -> float:
    """Twice the share of draws on the far side of no difference, the observed one counted as a draw."""
    below, above = (drawn <= 0).sum(), (drawn >= 0).sum()
    return float(min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn))))
