"""Tables of what targets have learned: accuracy of each arm, and what the default gains of what clean rows gain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

DEFAULT, ANY = "default", "any"
"""The arm that goes by the scores; and in place of a proxy, for arms that do not."""

Arm = tuple[str, int]
"""And the share of the pool that it keeps, in per cent."""

UNTUNED: Arm = ("untuned", 0)
FULL: Arm = ("full", 100)
SHARES = (20, 50)

AIMS = {"own": 0.8, "foreign": 0.5}
"""Share of what clean rows gain over the full pool that the default is to gain."""

HEAD = """# What targets learn from rows that pass the trust gate

`python experiments/robust/downstream.py WORK` writes this page; its words: [README](README.md#what-a-target-learns).

## Accuracy, in per cent
"""

ACCURACY = (
    "data",
    "arm",
    "share",
    "rows",
    "clean",
    "seeds",
    "accuracy",
    "over seeds",
    "less untuned",
    "less full",
    "lowest source, less untuned",
)

VERDICT = (
    "data",
    "proxy",
    "share",
    "seeds",
    "clean less full",
    "default less full",
    "share of it",
    "aim",
    "reached",
    "default less clean",
    "surely below",
)

Floats = NDArray[np.float64]


class Trial(NamedTuple):
    """One training and its measurement."""

    world: str
    proxy: str
    """That scored, where something was; else any."""

    seed: int
    arm: str
    share: int
    rows: int
    clean: float | None
    """Share of the rows; None where there are none."""

    accuracy: float
    sources: Mapping[str, float]
    """Accuracy by source, where there are some."""

    @property
    def key(self) -> tuple[str, str, int, str, int]:
        """What it is of."""
        return self[:5]


class Seeds:
    """The trials of one world that a proxy has scored, for the seeds that have all of the arms asked for."""

    def __init__(self, trials: Sequence[Trial], world: str, proxy: str) -> None:
        here = [trial for trial in trials if trial.world == world and trial.proxy in (proxy, ANY)]
        self._found = {(trial.arm, trial.share, trial.seed): trial for trial in here}
        self._all = sorted({trial.seed for trial in here})

    def of(self, *arms: Arm) -> list[list[Trial]]:
        """Of each arm its trials, over the same seeds in the same order."""
        seeds = [seed for seed in self._all if all((*arm, seed) in self._found for arm in arms)]
        return [[self._found[*arm, seed] for seed in seeds] for arm in arms]


def tables(trials: Sequence[Trial]) -> str:
    """The page."""
    places = list(dict.fromkeys((trial.world, trial.proxy) for trial in trials if trial.proxy != ANY))
    accuracies = [line for world in dict.fromkeys(trial.world for trial in trials) for line in _arms(trials, world)]
    verdicts = [_verdict(Seeds(trials, *place), *place, share) for place in places for share in SHARES]
    shown = [HEAD, *_head(ACCURACY), *accuracies, "", "## The default against its aims", "", *_head(VERDICT), *verdicts]
    return "\n".join(line for line in shown if line is not None) + "\n"


def _arms(trials: Sequence[Trial], world: str) -> Iterator[str]:
    """A line for each arm of a world, the default once for each proxy."""
    for proxy, arm, share in dict.fromkeys((one.proxy, one.arm, one.share) for one in trials if one.world == world):
        seeds = Seeds(trials, world, proxy)
        (own,) = seeds.of((arm, share))
        values = _accuracies(own)
        clean = "" if own[0].clean is None else f"{np.mean([one.clean for one in own]):.0%}"
        against = [_gap(*seeds.of((arm, share), (other, size))) for other, size in (UNTUNED, FULL)]
        yield _line(
            world,
            arm if proxy == ANY else f"{arm}, {proxy} proxy",
            f"{share} %" if share else "",
            f"{np.mean([one.rows for one in own]):.0f}",
            clean,
            len(own),
            f"{values.mean():.1f}",
            f"{values.min():.1f} to {values.max():.1f}",
            *against,
            _lowest_source(*seeds.of((arm, share), UNTUNED)),
        )


def _verdict(seeds: Seeds, world: str, proxy: str, share: int) -> str | None:
    """What the default gains of what clean rows gain, at one share."""
    own, clean, full = map(_accuracies, seeds.of((DEFAULT, share), ("clean", share), FULL))
    if not len(own):
        return None
    aim, most, gained = AIMS[proxy], clean - full, own - full
    below = "yes" if len(own) > 1 and reach(own - clean)[1] < 0 else "no"
    met = _met(gained - aim * most) if len(own) > 1 and reach(most)[0] > 0 else "clean rows gain nothing sure"
    part = f"{gained.mean() / most.mean():.0%}" if most.mean() > 0 else ""
    return _line(
        world,
        proxy,
        f"{share} %",
        len(own),
        *map(_interval, (most, gained)),
        part,
        f"{aim:.0%}",
        met,
        _interval(own - clean),
        below,
    )


def _met(excess: Floats) -> str:
    """Whether an aim is reached, where this is how far it is passed in each seed."""
    low, high = reach(excess)
    sure = low > 0 or high < 0
    return ("yes" if excess.mean() >= 0 else "no") + ("" if sure else ", not surely")


def reach(values: Floats) -> tuple[float, float]:
    """95 % t interval of a mean over seeds."""
    half = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def _interval(values: Floats) -> str:
    if len(values) < 2:
        return f"{values.mean():+.1f}" if len(values) else ""
    low, high = reach(values)
    return f"{values.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def _gap(own: Sequence[Trial], other: Sequence[Trial]) -> str:
    """One arm less another, seed by seed; nothing of an arm less itself."""
    return "" if own == other else _interval(_accuracies(own) - _accuracies(other))


def _lowest_source(own: Sequence[Trial], untuned: Sequence[Trial]) -> str:
    """The source that an arm serves worst, against the untuned target."""
    if own == untuned or not own[0].sources:
        return ""
    gaps = {
        name: np.array([one.sources[name] - two.sources[name] for one, two in zip(own, untuned, strict=True)])
        for name in own[0].sources
    }
    name = min(gaps, key=lambda name: float(gaps[name].mean()))
    return f"{name} {_interval(gaps[name])}"


def _accuracies(trials: Sequence[Trial]) -> Floats:
    return np.array([trial.accuracy for trial in trials])


def _head(names: Sequence[str]) -> list[str]:
    return [_line(*names), "| --- " * len(names) + "|"]


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
