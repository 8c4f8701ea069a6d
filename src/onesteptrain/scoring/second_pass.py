"""Second pass: what a first scoring said, and the losses of a proxy that has since learned from rows that passed.

A proxy warmed up on the pool has learned from its noise too, and is a poor judge of a hard row. Warmed up anew on rows
that pass the trust gate of a first scoring, it tells good rows from bad ones better. Its losses of rows and anchors
come beside the first columns, as second_loss and second_worst_loss, and the trust gate goes by them. Who draws the rows
and warms up the proxy is the caller's business.
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
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.data.corruption import Corrupted, corrupt
from onesteptrain.data.pool import Sample
from onesteptrain.errors import ScoreError
from onesteptrain.methods import Reference
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import BASE_COLUMNS, CORRUPTION_COLUMNS, Record, ScoreTable, Value
from onesteptrain.utility.answers import answer_losses
from onesteptrain.utility.encoded import records_with


def second_pass_scorer(
    first: ScoreTable, proxy: Proxy, anchors: Sequence[Sample], *, batch_size: int | None = None
) -> SecondPassScorer:
    """A scorer that adds the losses of another proxy to the records of a first scoring, whose reasons it keeps.

    Args:
        first: Scores of the same pool by method one_step, with its anchors' table beside it.
        proxy: Warmed up on rows that pass the trust gate of these scores.
        anchors: Those of the first scoring, in any order.
        batch_size: Samples in one pass; by default as many as suit the device.

    Raises:
        ScoreError: the first scores say nothing of their anchors; when called, a sample was not scored before.
    """
    if first.reference is None:
        raise ScoreError(
            f"{first.path} has no reference.parquet beside it; score the pool with method one_step and estimator "
            "fd or jvp first"
        )
    return SecondPassScorer(RecordsByRow(first.path), first.reference, first.corrupted, proxy, anchors, batch_size)


@dataclass(frozen=True)
class SecondPassScorer:
    """What `second_pass_scorer` makes."""

    first: RecordsByRow
    first_anchors: ScoreTable
    first_corrupted: ScoreTable | None
    proxy: Proxy
    anchors: Sequence[Sample] = field(repr=False)
    batch_size: int | None

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return self._joined(samples, [self.first.record(sample) for sample in samples])

    def reference(self) -> Reference:
        """The anchors with their records, in the first order; the second proxy has not learned from them either.

        Raises:
            ScoreError: the first scores had other anchors.
        """
        table, anchors = self.first_anchors.read(), {anchor.uid: anchor for anchor in self.anchors}
        uids = table["uid"].to_pylist()
        if set(uids) != set(anchors):
            raise ScoreError(
                f"{self.first_anchors.path} has {len(uids)} anchors that are not the {len(anchors)} given; "
                "give those of the first scoring"
            )
        ordered = [anchors[uid] for uid in uids]
        copies = self._copies()
        corrupted = self._joined([copy.sample for copy, _ in copies], [record for _, record in copies])
        return Reference(
            list(zip(ordered, self._joined(ordered, stored_records(table)), strict=True)),
            [(copy, record) for (copy, _), record in zip(copies, corrupted, strict=True)],
        )

    def _copies(self) -> list[tuple[Corrupted, Record]]:
        """The corrupted anchors of the first scoring, made again, with their records."""
        first = self.first_corrupted
        if first is None:
            return []
        table = first.read()
        again = {copy.sample.uid: copy for copy in corrupt(self.anchors, count=max(1, table.num_rows))}
        pairs = zip(table["uid"].to_pylist(), stored_records(table.drop_columns(list(CORRUPTION_COLUMNS))), strict=True)
        return [(again[uid], record) for uid, record in pairs]

    def _joined(self, samples: Sequence[Sample], first: Sequence[Record]) -> list[Record]:
        before = {sample.uid: record for sample, record in zip(samples, first, strict=True)}

        def measure(encoded: Sequence[Encoded], usable: Sequence[Sample]) -> list[Record]:
            losses = answer_losses(self.proxy, encoded, batch_size=self.batch_size)
            return [_with_losses(before[sample.uid], loss) for sample, loss in zip(usable, losses, strict=True)]

        return records_with(self.proxy.encoder, samples, measure)


def _with_losses(record: Record, losses: Float64[Tensor, " answer_token"]) -> Record:
    if record.reason is not None:
        return record
    if not losses.isfinite().all():
        return Record(reason=f"its loss at the second pass is {float(losses.mean())}; check the sample, or use float32")
    more = {"second_loss": float(losses.mean()), "second_worst_loss": float(losses.max())}
    return dataclasses.replace(record, columns={**record.columns, **more})


class RecordsByRow:
    """The records of a score table on disk; memory holds the two row groups that were asked for last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        file = pq.ParquetFile(path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self._group = functools.lru_cache(maxsize=2)(file.read_row_group)

    def record(self, sample: Sample) -> Record:
        """The record of a sample.

        Raises:
            ScoreError: it was not scored, or another stands in its row.
        """
        group = int(np.searchsorted(self._starts, sample.row, side="right")) - 1
        known = group < len(self._starts) - 1
        row = self._group(group).slice(sample.row - self._starts[group], 1) if known else None
        there = row["uid"][0].as_py() if row is not None else None
        if row is None or there != sample.uid:
            raise ScoreError(
                f"{self._path} has {there!r} in row {sample.row}, where now {sample.uid!r} is; "
                "it scored other rows: give the scores of this pool"
            )
        return stored_records(row)[0]


def stored_records(table: pa.Table) -> list[Record]:
    """Rows of a score table as they were when they were made."""
    names = [name for name in table.column_names if name not in BASE_COLUMNS]
    columns = {name: _values(table[name]) for name in names}
    scores, reasons = table["score"].to_pylist(), table["reason"].to_pylist()
    return [
        Record(score, reason, {name: columns[name][place] for name in names} if reason is None else {})
        for place, (score, reason) in enumerate(zip(scores, reasons, strict=True))
    ]


def _values(column: pa.ChunkedArray) -> list[Value]:
    """Plain numbers and texts; lists stay arrays of their type."""
    if not pa.types.is_list(column.type):
        return list(column.to_pylist())
    return [None if item.as_py() is None else item.values.to_numpy(zero_copy_only=False) for item in column]
