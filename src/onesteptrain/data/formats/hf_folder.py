"""A Hugging Face dataset folder, as `Dataset.save_to_disk` writes it: Arrow streams and two JSON files.

It is read without the `datasets` library: that would read images into the rows when it writes a dataset back, and the
rows would no longer be the pool's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from onesteptrain.data.formats.arrow import ArrowRows, readable, taken
from onesteptrain.data.formats.container import RowNumbers
from onesteptrain.errors import PoolError

STATE = "state.json"
"""The file that marks a dataset folder and lists its shards."""

SPLITS = "dataset_dict.json"
"""The file that marks a folder with one dataset folder a split."""

_INFO = "dataset_info.json"


@dataclass(frozen=True)
class StreamShard:
    """One Arrow stream, mapped into memory and not read into it."""

    path: Path

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            return list(stream.schema.names)

    @property
    def num_rows(self) -> int:
        """Number of rows, from the heads of the batches."""
        return sum(batch.num_rows for batch in self.batches())

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in the batches of the file."""
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                yield batch if columns is None else batch.select(columns)

    def copy_rows(self, rows: RowNumbers, out: Path) -> None:
        """Write the chosen rows with the same schema."""
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            schema = stream.schema
        with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in taken(self.batches(), rows):
                writer.write_batch(batch)


@dataclass(frozen=True)
class HfFolder(ArrowRows):
    """A container: the folder of one dataset."""

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen rows as a dataset folder that `load_from_disk` opens with the same features."""
        out.mkdir()
        copied = super().copy_rows(rows, out, suffix)
        state = _read_json(self.path / STATE)
        # datasets finds the results of `map` again by this; the subset must not be taken for the pool
        state["_fingerprint"] = hashlib.sha256(str(state.get("_fingerprint")).encode() + rows.tobytes()).hexdigest()[
            :16
        ]
        (out / STATE).write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
        if (self.path / _INFO).exists():
            shutil.copyfile(self.path / _INFO, out / _INFO)
        return copied


def open_hf_folder(path: Path) -> HfFolder:
    """The folder of one dataset.

    Raises:
        PoolError: files are missing or broken, or the folder was written by a very old `datasets`.
    """
    state = _read_json(path / STATE)
    if state.get("_indices_data_files"):
        raise PoolError(f"{path}: was saved by a very old version of datasets; load and save it with a new one")
    shards = tuple(StreamShard(path / str(file["filename"])) for file in state.get("_data_files", ()))
    for shard in shards:
        with readable(shard.path):
            _ = shard.columns
    return HfFolder(path, shards)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PoolError(f"{path}: cannot be read ({error}); save the dataset again with save_to_disk") from error
