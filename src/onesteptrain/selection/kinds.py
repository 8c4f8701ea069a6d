"""Kinds of rows, each judged by anchors of its own kind: by columns that are named, else by the length of answers.

What is usual differs between kinds: a short answer has another loss than a long one, a hard source another than an easy
one. Where anchors of several kinds are judged as one, the clean rows of a hard kind look wrong and the bad rows of an
easy kind look clean. Nobody needs to name kinds that show in the anchors: where their answers have two lengths with
nothing between, a gap of a factor of two with enough anchors on both sides, rows are of the kind on their side of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.likeness import kind_by
from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.errors import ConfigError
from onesteptrain.selection.recorded import scored_anchors, scored_pool
from onesteptrain.selection.separation import Codes
from onesteptrain.storage.score_table import ScoreTable

LENGTH = "answer length"
"""What kinds are told by where no column is named."""

MOST_KINDS = 200
"""More values make a column no kind of rows."""

_GAP = 2.0
"""Ratio of the lengths beside a gap between two kinds of answers."""

_LEAST_BESIDE = 5
"""Anchors on each side of a gap; fewer may be chance."""


class RowKinds(NamedTuple):
    """Of which kind rows and anchors are."""

    by: str
    """What they are told by, in words; empty where all are of one kind."""

    names: tuple[str, ...]
    rows: Codes
    """Place of the kind's name, row by row of the score table."""

    anchors: Codes
    """The same of the rows of its reference."""

    def judged(self) -> NDArray[np.bool_]:
        """Which kinds have anchors."""
        return np.bincount(self.anchors, minlength=len(self.names)) > 0

    def of_anchors(self, table: ScoreTable, uids: Sequence[str]) -> Codes:
        """Kinds of some anchors of the score table, by their uids."""
        assert table.reference is not None  # noqa: S101  kinds are those of its rows
        codes = dict(zip(table.reference.read(["uid"])["uid"].to_pylist(), self.anchors.tolist(), strict=True))
        return np.array([codes[uid] for uid in uids], np.int64)


def row_kinds(table: ScoreTable, columns: Sequence[str], pool: Pool | None = None) -> RowKinds:
    """Kinds by columns of pool and anchors, or those that show in the anchors where no column is named.

    Args:
        table: The scores, with their reference.
        columns: Names of columns; rows of a kind agree in all of them.
        pool: What was scored, where it is open.

    Raises:
        ConfigError: no row, or no anchor, has a column, or there are too many kinds.
        PoolError: pool or anchors are not there, or the pool has changed.
    """
    return _read_kinds(table, columns, pool) if columns else find_kinds(table)


def find_kinds(table: ScoreTable) -> RowKinds:
    """Kinds of answers by gaps in the lengths of the anchors' answers; one kind where there is no gap."""
    reference = table.reference
    anchors = 0 if reference is None else reference.rows
    one = RowKinds("", ("",), np.zeros(table.rows, np.int64), np.zeros(anchors, np.int64))
    if reference is None or not all("answer_tokens" in part.names for part in (table, reference)):
        return one
    lengths = reference.numbers("answer_tokens")
    limits = find_gaps(lengths[np.isfinite(lengths)])
    if not len(limits):
        return one
    ends = [f"{limit:.0f}" for limit in limits]
    between = [f"{low} to {high} tokens" for low, high in itertools.pairwise(ends)]
    names = (f"up to {ends[0]} tokens", *between, f"above {ends[-1]} tokens")
    rows, anchors = (
        np.searchsorted(limits, np.nan_to_num(part, nan=0.0), side="left").astype(np.int64)
        for part in (table.numbers("answer_tokens"), lengths)
    )
    return RowKinds(LENGTH, names, rows, anchors)


def find_gaps(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths in the middle, by ratio, of gaps between lengths, ascending."""
    ordered = np.sort(lengths)
    places = np.flatnonzero(ordered[1:] >= _GAP * np.maximum(ordered[:-1], 1)) + 1
    chosen, start = [], 0
    for place in places.tolist():
        if place - start >= _LEAST_BESIDE and len(ordered) - place >= _LEAST_BESIDE:
            chosen.append(place)
            start = place
    return np.sqrt(ordered[chosen] * np.maximum(ordered[[place - 1 for place in chosen]], 1))


def _read_kinds(table: ScoreTable, columns: Sequence[str], pool: Pool | None) -> RowKinds:
    opened, anchors = scored_pool(table, pool), scored_anchors(table)
    numbers: dict[str, int] = {}
    by_row, by_uid = np.zeros(len(opened), np.int64), {}
    for row, kind in _kinds_of(opened, columns):
        by_row[row.row] = numbers.setdefault(kind, len(numbers))
    for anchor, kind in _kinds_of(anchors, columns):
        by_uid[anchor.uid] = numbers.setdefault(kind, len(numbers))
    if len(numbers) > MOST_KINDS:
        raise ConfigError(
            f"kind {', '.join(columns)} has {len(numbers)} values; give columns with at most {MOST_KINDS}"
        )
    assert table.reference is not None  # noqa: S101  checked by who asks for kinds
    uids = table.reference.read(["uid"])["uid"].to_pylist()
    theirs = np.array([by_uid[uid] for uid in uids], np.int64)
    names = sorted(numbers)
    place = np.empty(len(numbers), np.int64)
    place[[numbers[name] for name in names]] = np.arange(len(names))
    rows = table.numbers("row").astype(np.int64)
    return RowKinds(", ".join(columns), tuple(names), place[by_row[rows]], place[theirs])


def _kinds_of(rows: Pool, columns: Sequence[str]) -> Iterator[tuple[Sample | Unreadable, str]]:
    """Rows with their kinds; at their end columns are refused that no row has."""
    left = set(columns)
    for row in rows:
        if left and isinstance(row, Sample):
            left -= row.fields.keys()
        yield row, kind_by(row, columns)
    if left:
        raise ConfigError(f"no row of {rows.path} has the column {min(left)!r}; give one that its rows have as kind")
