"""The files of a world, which all worlds have in common.

A world is a folder: `pool.jsonl` (messages format, with noise), `heldout.jsonl` (clean, to draw anchors from),
`benchmark.jsonl` (questions with their `answer`), `images/`, and `truth.parquet`, which says of each pool row what is
wrong with it, and where.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.errors import RunError
from onesteptrain.storage.atomic import whole
from onesteptrain.storage.fingerprints import short_hash

FileName = Literal["pool", "heldout", "benchmark"]

FILES: tuple[FileName, ...] = ("pool", "heldout", "benchmark")


class World(NamedTuple):
    """Where the parts of a world are."""

    pool: Path
    heldout: Path
    benchmark: Path
    truth: Path


class Span(NamedTuple):
    """Characters of an answer: the first, and the one after the last."""

    start: int
    end: int


class Row(NamedTuple):
    """One row as it is written."""

    question: str
    answer: str
    result: str
    """What is right; only held-out rows and the benchmark show it."""

    skill: str
    level: int
    picture: Callable[[], bytes]
    """Draws the picture, as a PNG."""

    kind: str | None = None
    """What is wrong with the row."""

    error: Span | None = None
    """Where in the answer it goes wrong."""

    copy_of: int | None = None
    """Place of the row that this one repeats."""


def sources(seed: int) -> dict[FileName, np.random.Generator]:
    """A source of chance for each file, so that a larger pool leaves anchors and benchmark as they are."""
    return {name: np.random.default_rng([seed, place]) for place, name in enumerate(FILES)}


def refuse_existing(folder: Path) -> None:
    """Let a world be made in a new folder only.

    Raises:
        RunError: the folder exists.
    """
    if folder.exists():
        raise RunError(f"world folder {folder} exists; choose another")


def write_world(folder: Path, rows: Mapping[FileName, Sequence[Row]], seed: int) -> World:
    """Write a world into a new folder, which appears whole or not at all.

    Args:
        folder: A new folder.
        rows: Rows of each file, in the order in which they were made.
        seed: Seed of the world, which ids come from.

    Raises:
        RunError: the folder exists.
    """
    refuse_existing(folder)
    with whole(folder) as part:
        (part / "images").mkdir(parents=True)
        for name in FILES:
            _write_rows(part, name, rows[name], seed)
        _write_truth(part / "truth.parquet", rows["pool"], seed)
    return World(*(folder / name for name in ("pool.jsonl", "heldout.jsonl", "benchmark.jsonl", "truth.parquet")))


def first_difference(answer: str, right: str) -> Span:
    """Where an answer first departs from the right one: a whole word, or the digits from the first wrong one on."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(answer, right, strict=False))
    reached = len(list(same))
    started = re.search(r"[A-Za-z]*$", answer[:reached])
    rest = re.match(r"[A-Za-z]+|\d+|.?", answer[reached:], re.DOTALL)
    start = started.start() if started and answer[reached : reached + 1].isalpha() else reached
    return Span(start, reached + (rest.end() if rest else 0))


def _write_rows(folder: Path, name: FileName, rows: Sequence[Row], seed: int) -> None:
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for place, row in _shuffled(rows, name, seed):
            identity = _identity(name, place, seed)
            image = f"images/{identity}.png"
            (folder / image).write_bytes(row.picture())
            file.write(json.dumps(_record(identity, image, row, name)) + "\n")


def _record(identity: str, image: str, row: Row, name: FileName) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"<image>{row.question}"}]
    if name != "benchmark":
        messages.append({"role": "assistant", "content": row.answer})
    facts = {"skill": row.skill, "level": row.level}
    record = {"id": identity, "messages": messages, "images": [image], **facts}
    return record if name == "pool" else {**record, "answer": row.result}


def _write_truth(path: Path, rows: Sequence[Row], seed: int) -> None:
    ordered = list(_shuffled(rows, "pool", seed))
    place_to_id = {place: _identity("pool", place, seed) for place in range(len(rows))}
    copies = [None if one.copy_of is None else place_to_id[one.copy_of] for _, one in ordered]
    table = {
        "uid": pa.array([place_to_id[place] for place, _ in ordered]),
        "row": pa.array(range(len(rows)), pa.int64()),
        "clean": pa.array([one.kind is None for _, one in ordered]),
        "kind": pa.array([one.kind or "clean" for _, one in ordered]),
        "duplicate_of": pa.array(copies, pa.string()),
        "error_start": pa.array([one.error and one.error.start for _, one in ordered], pa.int64()),
        "error_end": pa.array([one.error and one.error.end for _, one in ordered], pa.int64()),
    }
    pq.write_table(pa.table(table), path)


def _shuffled(rows: Sequence[Row], name: FileName, seed: int) -> list[tuple[int, Row]]:
    """Rows in the order of their ids, which says nothing of how they were made."""
    return sorted(enumerate(rows), key=lambda item: _identity(name, item[0], seed))


def _identity(name: FileName, place: int, seed: int) -> str:
    return short_hash(f"{seed}/{name}/{place}", 6)
