"""Which rows may be kept at all."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.exclusion import read_excluded
from onesteptrain.data.pool import Pool
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.selection.guidance import Guidance, guidances
from onesteptrain.selection.kinds import RowKinds, row_kinds
from onesteptrain.selection.options import SelectOptions, gate_share
from onesteptrain.selection.trust import Trust, can_trust, measure_trust
from onesteptrain.storage.score_table import ScoreTable

Positions = NDArray[np.int64]
"""Positions in the score table."""


class Gated(NamedTuple):
    """What a gate lets pass."""

    gate: str
    """What it was: trust, a share, a lowest value, or none; blind where neither trust nor the ranking column can tell
    and all pass."""

    passed: Positions
    """Ascending."""

    others: Positions
    """Scored rows that may be filled up with, the least bad first."""

    dropped: int
    """Scored rows that it dropped; those below a lowest value are not counted where another gate stands before it."""

    trust: Trust | None

    guidance: tuple[Guidance, ...] = ()
    """What anchors say of the columns that it rests on, or that it would not rest on."""

    kinds: RowKinds | None = None
    """Kinds of rows that trust went by; None without it."""


def pass_gate(table: ScoreTable, options: SelectOptions, floor: float | None = None, pool: Pool | None = None) -> Gated:
    """Drop what a selection is not to keep; rows without a value are dropped by every gate.

    Args:
        table: The scores.
        options: What is dropped.
        floor: The lowest value of the ranking column that is kept, where no budget says how many are.
        pool: What was scored, where it is open; it is read for kinds of rows by its columns.

    Raises:
        ScoreError: no such column, no row passes, or trust is asked for and the scores do not allow it.
        ConfigError: kinds are by a column that pool or anchors lack, or no trust gate would go by them.
    """
    column = options.by or "score"
    values = table.numbers(column)
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        raise ScoreError(f"{table.path} has no row with a value in column {column!r}; nothing can be selected")
    if options.gate == "trust" or (options.trusting and floor is None and can_trust(table)):
        kinds = row_kinds(table, options.kind, pool) if can_trust(table) else None
        gated = _by_trust(table, finite, kinds, asked=options.gate == "trust")
    elif options.kind:
        raise ConfigError(
            f"kind {', '.join(options.kind)} is given, but {table.path} is not judged by its anchors; leave kind out, "
            "or score with method one_step and at least 20 anchors, and rank by nothing"
        )
    elif options.gate in ("auto", "none"):
        gated = Gated("none", finite, np.empty(0, np.int64), 0, None)
        if floor is None and options.choosing:
            gated = _by_guidance(gated, guidances(table, [column]))
    else:
        ranked = "harm" if "harm" in table.names else column
        gated = _by_share(table.numbers(ranked), finite, options.gate)._replace(guidance=guidances(table, [ranked]))
    if floor is None:
        return gated
    gated = gated._replace(guidance=(*gated.guidance, *guidances(table, [column])))
    if not len(gated.passed[values[gated.passed] >= floor]):
        where = "" if gated.gate == "none" else f" that passes the gate {gated.gate}"
        raise ScoreError(
            f"no row of {table.path}{where} has at least {floor:g} in column {column!r}, whose highest value "
            f"is {values[gated.passed].max():g}; lower the value after >="
        )
    return _from_floor(gated, values, floor)


def without_excluded(gated: Gated, table: ScoreTable, exclude: Path | None) -> tuple[Gated, int]:
    """What a gate lets pass, without rows that a file names, and how many of those are in the table.

    Raises:
        PoolError: the file names no row, or is of another pool.
        ScoreError: nothing is left.
    """
    if exclude is None:
        return gated, 0
    columns = table.read(["row", "uid"]).to_pydict()
    named = read_excluded(exclude, zip(columns["row"], columns["uid"], strict=True), table.metadata.get("pool", ""))
    positions = np.flatnonzero(np.isin(columns["row"], named))
    passed, others = (rows[~np.isin(rows, positions)] for rows in (gated.passed, gated.others))
    if not len(passed):
        raise ScoreError(f"{exclude} names all rows of {table.path} that pass the gate; nothing can be selected")
    return gated._replace(passed=passed, others=others), len(positions)


def _by_trust(table: ScoreTable, finite: Positions, kinds: RowKinds | None, *, asked: bool) -> Gated:
    trust = measure_trust(table, kinds)
    if trust.verdict.blind and not asked:
        return Gated("blind", finite, np.empty(0, np.int64), 0, trust, kinds=kinds)
    passing = trust.passing()[finite]
    passed, dropped = finite[passing], finite[~passing]
    if not len(passed):
        raise ScoreError(
            f"no row of {table.path} looks like the anchors (the one that is most like them stands "
            f"{np.nanmin(trust.nonconformity):.1f} of their standard deviations out); "
            "give anchors that answer as the pool does, or select with --gate none"
        )
    order = np.argsort(np.nan_to_num(trust.nonconformity[dropped], nan=np.inf), kind="stable")
    return Gated("trust", passed, dropped[order], len(dropped), trust, kinds=kinds)


def _by_guidance(gated: Gated, guidance: tuple[Guidance, ...]) -> Gated:
    """All rows, which are not ranked by default where anchors say that the ranking is no guide."""
    guided = all(one.verdict == "guide" for one in guidance)
    return gated._replace(gate="none" if guided else "blind", guidance=guidance)


def _by_share(values: NDArray[np.float64], finite: Positions, gate: str) -> Gated:
    """The best share of the scored rows."""
    ranking = finite[np.argsort(-np.nan_to_num(values[finite], nan=-np.inf), kind="stable")]
    count = max(1, round(gate_share(gate) * len(ranking)))
    return Gated(gate, np.sort(ranking[:count]), ranking[count:], len(ranking) - count, None)


def _from_floor(gated: Gated, values: NDArray[np.float64], floor: float) -> Gated:
    """A lowest value holds for what a gate lets pass, and for what may be filled up with."""
    passed, others = (rows[values[rows] >= floor] for rows in (gated.passed, gated.others))
    if gated.gate == "none":
        return Gated(f">={floor:g}", passed, others, len(gated.passed) - len(passed), None, gated.guidance)
    return gated._replace(passed=passed, others=others)
