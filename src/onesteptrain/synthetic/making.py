"""How synthetic data are made: problems of one kind, noise planted in some of them, and the files they are written to.

A folder of synthetic data holds `pool.jsonl` (messages format, with noise), `heldout.jsonl` (clean, to draw anchors
from), `benchmark.jsonl` (questions with their `answer`), `images/`, and `truth.parquet`, which says of each pool row
what is wrong with it, and where. What is asked and shown, and what can go wrong, a kind of `Problem` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.storage.atomic import whole
from onesteptrain.storage.fingerprints import short_hash
from onesteptrain.synthetic.problem import Part, Problem

FileName = Literal["pool", "heldout", "benchmark"]
FILES: tuple[FileName, ...] = ("pool", "heldout", "benchmark")


class SyntheticData(NamedTuple):
    """Where the parts of synthetic data are."""

    pool: Path
    heldout: Path
    benchmark: Path
    truth: Path

    @classmethod
    def at(cls, folder: Path) -> SyntheticData:
        """The parts of data made earlier."""
        pool, heldout, benchmark = (folder / f"{name}.jsonl" for name in FILES)
        return cls(pool, heldout, benchmark, folder / "truth.parquet")


@dataclass(frozen=True)
class SyntheticOptions:
    """How many rows are made, and how much of the pool is bad."""

    pool_rows: int = 4000
    """Rows of the pool, near-duplicates included."""

    heldout_rows: int = 500
    """Clean rows that anchors are drawn from."""

    benchmark_rows: int = 400
    """Questions that models are measured on."""

    noise_share: float = 0.5
    """Share of the pool's rows that are bad, evenly over the kinds."""

    noise_kinds: tuple[str, ...] | None = None
    """What can be wrong with a row; all that the data know by default."""

    duplicate_share: float = 0.05
    """Share of the pool's rows that repeat another row with a slightly different picture and question."""

    seed: int = 0
    """Another seed, other data; the same seed, the same bytes."""

    def __post_init__(self) -> None:
        if min(self.pool_rows, self.heldout_rows, self.benchmark_rows) < 1:
            raise ConfigError("synthetic data need at least one row in each part")
        if not 0 <= self.noise_share <= 1 or not 0 <= self.duplicate_share < 1:
            raise ConfigError("noise_share and duplicate_share are shares between 0 and 1")
        if self.noise_share and self.noise_kinds == ():
            raise ConfigError("noise_kinds is empty; name at least one, or set noise_share to 0")


class Amounts(NamedTuple):
    """How many rows of one kind a pool has, and what share of them is bad, or repeats another row."""

    rows: int
    noise_share: float
    duplicate_share: float


AnyProblem = TypeVar("AnyProblem", bound=Problem)


def make(kind: type[Problem], options: SyntheticOptions, folder: Path) -> SyntheticData:
    """Make data in a new folder, which appears whole or not at all.

    Raises:
        ConfigError: noise of no such kind is asked for, or more of a kind than there are rows that can go bad in it.
        MissingExtraError: what draws the pictures is not installed.
        RunError: the folder exists.
    """
    kinds = kind.noise_kinds if options.noise_kinds is None else options.noise_kinds
    if not set(kinds) <= set(kind.noise_kinds):
        raise ConfigError(f"noise_kinds is {kinds}; choose some of {', '.join(kind.noise_kinds)}")
    # a source of chance for each file, so that a larger pool leaves anchors and benchmark as they are
    chance = {name: np.random.default_rng([options.seed, place]) for place, name in enumerate(FILES)}
    amounts = Amounts(options.pool_rows, options.noise_share, options.duplicate_share)
    rows: dict[FileName, Sequence[Problem]] = {
        "pool": planted(kind, kinds, amounts, chance["pool"]),
        "heldout": problems(kind, options.heldout_rows, "heldout", chance["heldout"]),
        "benchmark": problems(kind, options.benchmark_rows, "benchmark", chance["benchmark"]),
    }
    return write(rows, options.seed, folder)


def problems(kind: type[AnyProblem], count: int, part: Part, generator: np.random.Generator) -> list[AnyProblem]:
    """Draw clean problems."""
    return [kind.draw(part, generator) for _ in range(count)]


def planted(
    kind: type[AnyProblem], kinds: Sequence[str], amounts: Amounts, generator: np.random.Generator
) -> list[AnyProblem]:
    """Draw problems, spoil some, and add near-duplicates, clean and bad in the same share, until there are enough."""
    rows = problems(kind, amounts.rows - round(amounts.duplicate_share * amounts.rows), "pool", generator)
    chosen = _choose_kinds(rows, kinds, round(amounts.noise_share * len(rows)), generator)
    bad = np.array(list(chosen), np.int64)
    for index, noise in chosen.items():
        rows[index] = rows[index].spoil(noise, generator)
    good = generator.permutation(np.setdiff1d(np.arange(len(rows)), bad))
    copies = amounts.rows - len(rows)
    bad_copies = round(amounts.rows * amounts.noise_share - len(bad)) if len(bad) else 0
    for group, count in ((bad, bad_copies), (good, copies - bad_copies)):
        for place in range(count):
            source = int(group[place % len(group)])
            rows.append(rows[source].repeat(source, generator))
    return rows


def write(rows: Mapping[FileName, Sequence[Problem]], seed: int, folder: Path) -> SyntheticData:
    """Write the rows of all files to a new folder, which appears whole or not at all.

    Raises:
        MissingExtraError: what draws the pictures is not installed.
        RunError: the folder exists.
    """
    if folder.exists():
        raise RunError(f"folder {folder} exists; choose another")
    with whole(folder) as part:
        (part / "images").mkdir(parents=True)
        for name in FILES:
            _write_rows(part, name, rows[name], seed)
        _write_truth(part / "truth.parquet", rows["pool"], seed)
    return SyntheticData.at(folder)


def _choose_kinds(
    rows: Sequence[Problem], kinds: Sequence[str], wanted: int, generator: np.random.Generator
) -> dict[int, str]:
    """Which row goes bad, and how: each kind as often; systematic kinds gather at the rows that invite them."""
    order = [int(index) for index in generator.permutation(len(rows))]
    allowed = {kind: [index for index in order if rows[index].allows(kind)] for kind in kinds}
    candidates = {
        kind: iter(sorted(indices, key=lambda index, kind=kind: not rows[index].invites(kind)))  # type: ignore[misc]
        for kind, indices in allowed.items()
    }
    asked = [kinds[place % len(kinds)] for place in range(wanted)]
    chosen: dict[int, int] = {}
    # kinds that few rows allow choose first
    for place in sorted(range(wanted), key=lambda place: len(allowed[asked[place]])):
        row = next((index for index in candidates[asked[place]] if index not in chosen), None)
        if row is None:
            raise ConfigError(
                f"noise_share asks for {wanted} bad rows of {len(rows)}, more than can be {asked[place]!r} as often as "
                "the other kinds; lower noise_share or add noise_kinds"
            )
        chosen[row] = place
    return {index: asked[chosen[index]] for index in sorted(chosen, key=chosen.__getitem__)}


def _write_rows(folder: Path, name: FileName, rows: Sequence[Problem], seed: int) -> None:
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for place, row in _shuffled(rows, name, seed):
            identity = _identity(name, place, seed)
            picture = row.picture(name)
            images = [] if picture is None else [f"images/{identity}.png"]
            if picture is not None:
                (folder / images[0]).write_bytes(picture)
            file.write(json.dumps(_record(identity, images, row, name)) + "\n")


def _record(identity: str, images: Sequence[str], row: Problem, name: FileName) -> dict[str, Any]:
    messages = [{"role": "user", "content": "<image>" * len(images) + row.question}]
    if name != "benchmark":
        messages.append({"role": "assistant", "content": row.answer})
    record = {"id": identity, "messages": messages, "images": images, **row.facts}
    if row.source is not None:
        record["source"] = row.source
    return record if name == "pool" else {**record, "answer": row.right.result}


def _write_truth(path: Path, rows: Sequence[Problem], seed: int) -> None:
    ordered = list(_shuffled(rows, "pool", seed))
    place_to_id = {place: _identity("pool", place, seed) for place in range(len(rows))}
    copies = [None if row.copy_of is None else place_to_id[row.copy_of] for _, row in ordered]
    errors = [row.error for _, row in ordered]
    table = {
        "uid": pa.array([place_to_id[place] for place, _ in ordered]),
        "row": pa.array(range(len(rows)), pa.int64()),
        "clean": pa.array([row.noise is None for _, row in ordered]),
        "kind": pa.array([row.noise or "clean" for _, row in ordered]),
        "duplicate_of": pa.array(copies, pa.string()),
        "error_start": pa.array([error and error.start for error in errors], pa.int64()),
        "error_end": pa.array([error and error.end for error in errors], pa.int64()),
    }
    pq.write_table(pa.table(table), path)


def _shuffled(rows: Sequence[Problem], name: FileName, seed: int) -> list[tuple[int, Problem]]:
    """Rows in the order of their ids, which says nothing of how they were made."""
    return sorted(enumerate(rows), key=lambda item: _identity(name, item[0], seed))


def _identity(name: FileName, place: int, seed: int) -> str:
    return short_hash(f"{seed}/{name}/{place}", size=6)
