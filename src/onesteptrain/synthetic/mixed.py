"""The mixed data: one pool of several sources, which differ in what they show, how they answer, and how many are bad.

Every row says in its column `source` where it is from, in the pool as in the held-out rows and the benchmark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from onesteptrain.errors import ConfigError
from onesteptrain.synthetic.charts import ChartProblem
from onesteptrain.synthetic.digits import DigitProblem
from onesteptrain.synthetic.making import FILES, Amounts, FileName, SyntheticData, planted, problems, write
from onesteptrain.synthetic.number_texts import TextProblem
from onesteptrain.synthetic.problem import Problem
from onesteptrain.synthetic.short_digits import ShortDigitProblem

Source = Literal["digits", "charts", "text", "short"]

SOURCES: Mapping[Source, type[Problem]] = {
    "digits": DigitProblem,
    "charts": ChartProblem,
    "text": TextProblem,
    "short": ShortDigitProblem,
}

SHARES: Mapping[Source, float] = {"digits": 0.5, "charts": 0.25, "text": 0.15, "short": 0.1}

NOISE_SHARES: Mapping[Source, float] = {"digits": 0.6, "charts": 0.2, "text": 0.3, "short": 0.0}


@dataclass(frozen=True)
class MixedOptions:
    """How many rows are made, what share of them each source has, and how much of its part of the pool is bad."""

    pool_rows: int = 4000
    """Rows of the pool, near-duplicates included."""

    heldout_rows: int = 500
    """Clean rows that anchors are drawn from."""

    benchmark_rows: int = 400
    """Questions that models are measured on."""

    shares: Mapping[Source, float] = field(default_factory=lambda: SHARES)
    """Share of each source, in all files alike; they add up to 1, and a source that is not named has none."""

    noise_shares: Mapping[Source, float] = field(default_factory=dict)
    """Share of a source's rows in the pool that are bad; one that is not named has its own by default."""

    duplicate_share: float = 0.05
    """Share of the pool's rows that repeat another row of their source in a slightly different form."""

    seed: int = 0
    """Another seed, other data; the same seed, the same bytes."""

    def __post_init__(self) -> None:
        if min(self.pool_rows, self.heldout_rows, self.benchmark_rows) < 1:
            raise ConfigError("synthetic data need at least one row in each part")
        if unknown := {*self.shares, *self.noise_shares} - {*SOURCES}:
            raise ConfigError(f"no source is called {', '.join(sorted(unknown))}; choose some of {', '.join(SOURCES)}")
        if any(not 0 <= share <= 1 for share in self.noise_shares.values()) or not 0 <= self.duplicate_share < 1:
            raise ConfigError("noise_shares and duplicate_share are shares between 0 and 1")
        if any(share < 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ConfigError(f"shares is {dict(self.shares)}; they must be positive and add up to 1")


def make_mixed(options: MixedOptions, folder: Path) -> SyntheticData:
    """Make data in a new folder, which appears whole or not at all.

    Raises:
        ConfigError: more noise of a kind is asked for than there are rows of a source that can go bad in it.
        MissingExtraError: what draws the pictures is not installed.
        RunError: the folder exists.
    """
    sizes: dict[FileName, int] = {
        "pool": options.pool_rows,
        "heldout": options.heldout_rows,
        "benchmark": options.benchmark_rows,
    }
    return write({name: _rows(name, sizes[name], options) for name in FILES}, options.seed, folder)


def _rows(name: FileName, size: int, options: MixedOptions) -> list[Problem]:
    """The rows of one file, source after source; places of repeated rows count from the first row of the file."""
    rows: list[Problem] = []
    for source, count in _counts(options.shares, size).items():
        kind, before = SOURCES[source], len(rows)
        # a source of chance for each file and source, so that none changes with the size of another
        chance = np.random.default_rng([options.seed, FILES.index(name), 1 + list(SOURCES).index(source)])
        if name == "pool":
            noise_share = options.noise_shares.get(source, NOISE_SHARES[source])
            mine = planted(kind, kind.noise_kinds, Amounts(count, noise_share, options.duplicate_share), chance)
        else:
            mine = problems(kind, count, name, chance)
        for row in mine:
            copy_of = None if row.copy_of is None else before + row.copy_of
            rows.append(dataclasses.replace(row, source=source, copy_of=copy_of))
    return rows


def _counts(shares: Mapping[Source, float], size: int) -> dict[Source, int]:
    """Rows of each source, in the order of SOURCES; rounded, they still add up."""
    named = [source for source in SOURCES if shares.get(source)]
    ends = np.rint(np.cumsum([0.0, *(shares[source] for source in named)]) * size)
    return {source: int(end - start) for source, start, end in zip(named, ends[:-1], ends[1:], strict=True)}
