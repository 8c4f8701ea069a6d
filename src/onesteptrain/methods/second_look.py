"""Second look: what an earlier scoring said, and the losses of a proxy that has since learned from rows that passed.

A proxy warmed up on the pool has learned from its noise too, and is a poor judge of a hard row. Warmed up anew on rows
that pass the trust gate of a first scoring, it tells good rows from bad ones better. Its losses of rows and anchors
come beside the first columns, as second_loss and second_worst_loss, and the trust gate goes by them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from onesteptrain.data.pool import Sample
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.methods import Scorer, Setting, check_batch_size
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import BASE_COLUMNS, Record, ScoreTable, Value
from onesteptrain.utility.answers import answer_losses
from onesteptrain.utility.encoded import records_with


@dataclass(frozen=True)
class SecondLook:
    """The columns of an earlier scoring, with the losses of a proxy that was warmed up on rows that passed."""

    first: str = ""
    """The scores.parquet of an earlier scoring of the same pool by method one_step."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as --batch-tokens allows."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)

    def prepare(self, setting: Setting, /) -> Scorer:
        """Open the earlier scores.

        Raises:
            ConfigError: no earlier scores are named.
            ScoreError: they are not there, or say nothing of their anchors.
        """
        if not self.first:
            raise ConfigError("method second_look needs earlier scores; give --first RUN/scores.parquet of `ost score`")
        table = ScoreTable(Path(self.first))
        if table.reference is None:
            raise ScoreError(
                f"{table.path} has no reference.parquet beside it; score the pool with method one_step and estimator "
                "fd or jvp first"
            )
        proxy, anchors = setting.need_proxy("second_look"), setting.need_anchors("second_look")
        return _Looked(proxy, Earlier(table.path), table.reference, anchors, self.batch_size)


@dataclass(frozen=True)
class _Looked:
    """Joins earlier records with the losses of the second proxy."""

    proxy: Proxy
    rows: Earlier
    anchor_rows: ScoreTable
    anchors: Sequence[Sample] = field(repr=False)
    batch_size: int | None

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample; one without a score keeps its reason."""
        return self._joined(samples, self.rows.records(samples))

    def reference(self) -> list[tuple[Sample, Record]]:
        """The anchors with their records, in the earlier order; the second proxy has not learned from them either.

        Raises:
            ScoreError: the earlier scores had other anchors.
        """
        table, anchors = self.anchor_rows.read(), {anchor.uid: anchor for anchor in self.anchors}
        uids = table["uid"].to_pylist()
        if set(uids) != set(anchors):
            raise ScoreError(
                f"{self.anchor_rows.path} has {len(uids)} anchors that are not the {len(anchors)} given; "
                "give those of the earlier scoring"
            )
        ordered = [anchors[uid] for uid in uids]
        return list(zip(ordered, self._joined(ordered, _records(table)), strict=True))

    def _joined(self, samples: Sequence[Sample], earlier: Sequence[Record]) -> list[Record]:
        before = {sample.uid: record for sample, record in zip(samples, earlier, strict=True)}

        def measure(encoded: Sequence[Encoded], usable: Sequence[Sample]) -> list[Record]:
            losses = answer_losses(self.proxy, encoded, batch_size=self.batch_size)
            return [_with_losses(before[one.uid], loss) for one, loss in zip(usable, losses, strict=True)]

        return records_with(self.proxy.encoder, samples, measure)


def _with_losses(record: Record, losses: torch.Tensor) -> Record:
    if record.reason is not None:
        return record
    if not losses.isfinite().all():
        return Record(reason=f"its loss at the second look is {float(losses.mean())}; check the sample, or use float32")
    more = {"second_loss": float(losses.mean()), "second_worst_loss": float(losses.max())}
    return dataclasses.replace(record, columns={**record.columns, **more})


@dataclass(frozen=True)
class Earlier:
    """Earlier records by row; memory holds the row group that was asked for last."""

    path: Path

    def records(self, samples: Sequence[Sample]) -> list[Record]:
        """The records of some samples, in their order.

        Raises:
            ScoreError: a sample was not scored, or another stands in its row.
        """
        found: dict[int, Record] = {}
        rows = np.array([sample.row for sample in samples], dtype=np.int64)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            places = np.flatnonzero(groups == group).tolist()
            table = _read_group(self.path, self.path.stat().st_mtime_ns, group)
            inside = rows[places] - self._starts[group]
            self._refuse_others([samples[place] for place in places], table, inside)
            found |= dict(zip(places, _records(table.take(inside)), strict=True))
        return [found[place] for place in range(len(samples))]

    def _refuse_others(self, samples: Sequence[Sample], table: pa.Table, inside: np.ndarray) -> None:
        for sample, place in zip(samples, inside.tolist(), strict=True):
            there = table["uid"][place].as_py() if place < len(table) else None
            if there != sample.uid:
                raise ScoreError(
                    f"{self.path} has {there!r} in row {sample.row}, where now {sample.uid!r} is; "
                    "it scored other rows: give the scores of this pool"
                )

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """First row of each row group."""
        facts = pq.read_metadata(self.path)
        sizes = [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]
        return np.cumsum([0, *sizes[:-1]], dtype=np.int64)


@functools.lru_cache(maxsize=2)
def _read_group(path: Path, changed: int, group: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group)


def _records(table: pa.Table) -> list[Record]:
    """Rows of a score table as they were when they were made."""
    names = [name for name in table.column_names if name not in BASE_COLUMNS]
    columns = {name: _values(table[name]) for name in names}
    return [
        Record(score, reason, {name: columns[name][place] for name in names} if reason is None else {})
        for place, (score, reason) in enumerate(
            zip(table["score"].to_pylist(), table["reason"].to_pylist(), strict=True)
        )
    ]


def _values(column: pa.ChunkedArray) -> list[Value]:
    """Plain numbers and texts; lists stay arrays of their type."""
    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    return [None if one.as_py() is None else one.values.to_numpy(zero_copy_only=False) for one in column]
