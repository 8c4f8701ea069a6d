"""Planting noise in a pool: which rows go bad, and how, and which are repeated; the same in all worlds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from onesteptrain.errors import ConfigError

Problem = TypeVar("Problem")
Kind = TypeVar("Kind", bound=str)


@dataclass(frozen=True)
class PlantingOptions:
    """How large a world is, and how much of its pool is bad; each world adds its kinds of noise."""

    pool_rows: int = 4000
    """Rows of the pool, near-duplicates included."""

    heldout_rows: int = 500
    """Clean rows that anchors are drawn from."""

    benchmark_rows: int = 400
    """Questions that models are measured on."""

    noise_share: float = 0.5
    """Share of the pool's rows that are bad, evenly over the kinds."""

    noise_kinds: tuple[str, ...] = ()
    """What can be wrong with a row."""

    duplicate_share: float = 0.05
    """Share of the pool's rows that repeat another row with a slightly different picture and question."""

    seed: int = 0
    """Another seed, another world; the same seed, the same bytes."""

    known_kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if min(self.pool_rows, self.heldout_rows, self.benchmark_rows) < 1:
            raise ConfigError("a world needs at least one row in each part")
        if not 0 <= self.noise_share <= 1 or not 0 <= self.duplicate_share < 1:
            raise ConfigError("noise_share and duplicate_share are shares between 0 and 1")
        unknown = [kind for kind in self.noise_kinds if kind not in self.known_kinds]
        if unknown or (self.noise_share and not self.noise_kinds):
            raise ConfigError(f"noise_kinds is {self.noise_kinds}; choose some of {', '.join(self.known_kinds)}")


class Craft(NamedTuple, Generic[Problem, Kind]):
    """What a world does to its problems."""

    spoil: Callable[[Problem, Kind, np.random.Generator], Problem]
    """Make a clean problem bad in one way."""

    repeat: Callable[[Problem, int, np.random.Generator], Problem]
    """Make a near-duplicate of the problem at a place."""

    allows: Callable[[Problem, Kind], bool]
    """Whether a problem can go bad in this way at all."""

    invites: Callable[[Problem, Kind], bool]
    """Whether a problem is one that this kind of noise, a systematic one, gathers at."""


def plant(
    clean: Sequence[Problem],
    kinds: Sequence[Kind],
    options: PlantingOptions,
    generator: np.random.Generator,
    craft: Craft[Problem, Kind],
) -> list[Problem]:
    """Spoil some of the clean problems, and add near-duplicates of both until the pool has its size."""
    rows = list(clean)
    chosen = _choose_kinds(rows, kinds, round(options.noise_share * len(rows)), generator, craft)
    bad = np.array(list(chosen), np.int64)
    for index, kind in chosen.items():
        rows[index] = craft.spoil(rows[index], kind, generator)
    good = generator.permutation(np.setdiff1d(np.arange(len(rows)), bad))
    copies = options.pool_rows - len(rows)
    bad_copies = round(options.pool_rows * options.noise_share - len(bad))
    for group, count in ((bad, bad_copies), (good, copies - bad_copies)):
        for place in range(count):
            source = int(group[place % len(group)])
            rows.append(craft.repeat(rows[source], source, generator))
    return rows


def clean_rows(options: PlantingOptions) -> int:
    """How many rows of the pool repeat no other."""
    return options.pool_rows - round(options.duplicate_share * options.pool_rows)


def _choose_kinds(
    rows: Sequence[Problem],
    kinds: Sequence[Kind],
    wanted: int,
    generator: np.random.Generator,
    craft: Craft[Problem, Kind],
) -> dict[int, Kind]:
    """Which row goes bad, and how: each kind as often; systematic kinds gather at the rows that invite them."""
    order = [int(index) for index in generator.permutation(len(rows))]
    allowed = {kind: [index for index in order if craft.allows(rows[index], kind)] for kind in kinds}
    candidates = {
        kind: iter(sorted(indices, key=lambda index, kind=kind: not craft.invites(rows[index], kind)))  # type: ignore[misc]
        for kind, indices in allowed.items()
    }
    asked = [kinds[place % len(kinds)] for place in range(wanted)]
    chosen: dict[int, int] = {}
    # kinds that few rows allow choose first
    for place in sorted(range(wanted), key=lambda place: len(allowed[asked[place]])):
        found = next((index for index in candidates[asked[place]] if index not in chosen), None)
        if found is None:
            raise ConfigError(
                f"noise_share asks for {wanted} bad rows of {len(rows)}, more than can be {asked[place]!r} as often as "
                "the other kinds; lower noise_share or add noise_kinds"
            )
        chosen[found] = place
    return {index: asked[chosen[index]] for index in sorted(chosen, key=chosen.__getitem__)}
