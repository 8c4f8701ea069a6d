"""The pool and the anchors that a score table is of, as its run has read them."""

from __future__ import annotations

from pathlib import Path

from onesteptrain.data.contents import changed_pictures
from onesteptrain.data.image_files import short_name
from onesteptrain.data.pool import Pool
from onesteptrain.data.score_record import read_score_record
from onesteptrain.errors import PoolError
from onesteptrain.storage.score_table import ScoreTable


def scored_pool(table: ScoreTable, pool: Pool | None = None) -> Pool:
    """The pool that a score table is of.

    Args:
        table: The scores.
        pool: The pool, where it is open already.

    Raises:
        RunError: the table stands in no run directory.
        PoolError: the pool is not there, or it or its pictures have changed since it was scored.
    """
    pool = table.pool if pool is None else pool
    if pool is None:
        pool = read_score_record(table.path.parent).open_pool()
    if table.metadata.get("pool", pool.fingerprint) != pool.fingerprint:
        raise PoolError(f"{pool.path} has changed since {table.path} was written; score it again")
    _refuse_changed_pictures(table.path.parent, pool.image_root)
    return pool


def _refuse_changed_pictures(run: Path, image_root: Path) -> None:
    if changed := changed_pictures(run, image_root):
        others = f" and {len(changed) - 1} others" if len(changed) > 1 else ""
        raise PoolError(
            f"picture {short_name(changed[0])}{others} in {image_root} changed since {run} was scored; score the pool "
            "again with the same --out: the scores of all other rows are taken over"
        )


def scored_anchors(table: ScoreTable) -> Pool:
    """The anchors that a score table is by.

    Raises:
        RunError: the table stands in no run directory.
        ConfigError: the method has no anchors.
        PoolError: they are not there.
    """
    return read_score_record(table.path.parent).open_anchors()
