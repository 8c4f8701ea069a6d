"""Rows in memory: a `datasets.Dataset`, a pandas frame, or a list of dicts. No image is decoded early."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from onesteptrain.data.formats.arrow import ROWS_AT_ONCE, shard_rows
from onesteptrain.data.formats.container import RawRow, RowNumbers
from onesteptrain.data.formats.turns import image_ref
from onesteptrain.data.formats.uids import content_digest
from onesteptrain.errors import PoolError, SampleError

_IMAGES = {"image", "images"}

Kind = Literal["dataset", "frame", "list"]


@dataclass(frozen=True, eq=False)
class MemoryRows:
    """A container: rows in memory, which must not change while it is used."""

    source: Any
    """The Dataset, frame or list."""

    kind: Kind

    @property
    def path(self) -> Path:
        """How messages call it."""
        return Path(f"{self.kind} in memory")

    def digests(self) -> Iterator[bytes]:
        """Hashes of the rows' content."""
        return (content_digest(row.value) for row in self.raw_rows())

    def raw_rows(self, ids_until: int = 0) -> Iterator[RawRow]:
        """All rows in order."""
        if self.kind == "dataset":
            return shard_rows(_DatasetShard(self.path, self.source), ids_until)
        rows = self.source if self.kind == "list" else _frame_rows(self.source)
        return (RawRow(f"{self.path} row {row}", _plain(value)) for row, value in enumerate(rows))

    def count(self) -> int:
        """Number of rows."""
        return len(self.source)

    def take(self, rows: RowNumbers) -> MemoryRows:
        """The chosen rows, in an object of the same kind."""
        if self.kind == "dataset":
            return MemoryRows(self.source.select(rows), self.kind)
        chosen = [self.source[row] for row in rows] if self.kind == "list" else self.source.iloc[rows]
        return MemoryRows(chosen, self.kind)

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen rows as JSON, JSONL, Parquet or, without a suffix, a folder made by `save_to_disk`."""
        if suffix not in _WRITERS:
            raise PoolError(f"rows in memory are not written as {suffix}; choose {', '.join(filter(None, _WRITERS))}")
        chosen = self.take(rows[: rows.searchsorted(self.count())])
        _WRITERS[suffix](chosen, out)
        return chosen.count()


@dataclass(frozen=True)
class _DatasetShard:
    """A Dataset as its Arrow columns, where images stay as they are stored."""

    path: Path
    dataset: Any

    @property
    def columns(self) -> Sequence[str]:
        return list(self.dataset.column_names)

    @property
    def num_rows(self) -> int:
        return len(self.dataset)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        view = self.dataset.with_format("arrow", columns=columns and list(columns))
        size = ROWS_AT_ONCE if columns is None else 2**14
        for start in range(0, self.num_rows, size):
            yield from view[start : start + size].to_batches()


def open_memory(source: object) -> MemoryRows:
    """The container of an object in memory.

    Raises:
        PoolError: it is none that a pool can be.
    """
    library, name = type(source).__module__.partition(".")[0], type(source).__name__
    if (library, name) == ("datasets", "Dataset"):
        return MemoryRows(source, "dataset")
    if (library, name) == ("pandas", "DataFrame"):
        return MemoryRows(source, "frame")
    if isinstance(source, list | tuple):
        return MemoryRows(source, "list")
    if library == "datasets" and isinstance(source, dict):
        raise PoolError(f"a {name} holds the splits {', '.join(source)}; a pool is one of them: give that one")
    raise PoolError(
        f"a pool is a path, a datasets.Dataset, a pandas frame or a list of dicts, not a {library}.{name}; "
        "convert it to one of these"
    )


def to_dataset(rows: Sequence[Any], image_root: Path | None = None) -> Any:
    """A `datasets.Dataset` of rows whose columns may mix one value with a list, and texts with parts, as JSON does.

    Args:
        rows: Raw rows.
        image_root: Where relative paths start from; with it, the columns `image` and `images` become images.

    Raises:
        PoolError: a column mixes types in another way.
    """
    import datasets

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _uniform([_arrow_value(row.get(name)) for row in rows]) for name in names}
    lists = {name: any(isinstance(value, list) for value in columns[name]) for name in _IMAGES & set(names)}
    try:
        if image_root is None:
            return datasets.Dataset(pa.table(columns))
        for name in lists:
            columns[name] = [_image_value(value, image_root) for value in columns[name]]
        dataset = datasets.Dataset(pa.table(columns))
        for name, many in lists.items():
            dataset = dataset.cast_column(name, datasets.List(datasets.Image()) if many else datasets.Image())
        return dataset
    except (pa.ArrowException, TypeError, SampleError) as error:
        raise PoolError(f"the rows do not fit into typed columns: {error}; mend them, or write JSON") from error


def _frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """The rows of a frame, with None in place of what is missing."""
    for start in range(0, len(frame), ROWS_AT_ONCE):
        some = frame.iloc[start : start + ROWS_AT_ONCE]
        yield from some.astype(object).where(some.notna(), None).to_dict("records")


def _plain(value: Any) -> Any:
    """A value as a file would hold it: tuples and arrays as lists, numbers of numpy as numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _arrow_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _arrow_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_arrow_value(item) for item in value]
    return {"bytes": encoded(value), "path": None} if isinstance(value, Image.Image) else value


def _image_value(value: Any, image_root: Path) -> Any:
    """An image, or a list of them, as `datasets` stores images."""
    if isinstance(value, list):
        return [_image_value(item, image_root) for item in value]
    if value in (None, ""):
        return None
    source = image_ref(value, image_root).source
    path = str(source) if isinstance(source, Path) else None
    return {"bytes": source if path is None else None, "path": path}


def _uniform(column: list[Any]) -> list[Any]:
    """One value among lists becomes a list of one; a text among lists of parts, in messages too, a part."""
    if any(isinstance(value, list) for value in column):
        column = [value if value is None or isinstance(value, list) else [value] for value in column]
    messages = [item for value in column if isinstance(value, list) for item in value if isinstance(item, dict)]
    if any(isinstance(message.get("content"), list) for message in messages):
        for message in messages:
            if isinstance(message.get("content"), str):
                message["content"] = [{"type": "text", "text": message["content"]}]
    return column


def encoded(image: Image.Image) -> bytes:
    """A Pillow image as PNG, which loses no pixel."""
    stream = io.BytesIO()
    image = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    image.save(stream, "PNG", exif=image.getexif())
    return stream.getvalue()


def _json_value(value: Any) -> Any:
    """Bytes as JSON holds them."""
    if isinstance(value, Mapping):
        given = value.get("bytes")
        text = {"bytes": base64.b64encode(given).decode()} if isinstance(given, bytes) else {}
        return {key: _json_value(item) for key, item in {**value, **text}.items()}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, Image.Image):
        value = encoded(value)
    return _json_value({"bytes": value}) if isinstance(value, bytes) else value


def _write_json(chosen: MemoryRows, out: Path) -> None:
    rows = [_json_value(row.value) for row in chosen.raw_rows()]
    out.write_text(json.dumps(rows, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _write_lines(chosen: MemoryRows, out: Path) -> None:
    with out.open("w", encoding="utf-8") as file:
        for row in chosen.raw_rows():
            file.write(json.dumps(_json_value(row.value), ensure_ascii=False, default=str) + "\n")


def _write_parquet(chosen: MemoryRows, out: Path) -> None:
    pq.write_table(_as_dataset(chosen).with_format("arrow")[:], out)


def _write_folder(chosen: MemoryRows, out: Path) -> None:
    _as_dataset(chosen).save_to_disk(str(out))


def _as_dataset(chosen: MemoryRows) -> Any:
    return chosen.source if chosen.kind == "dataset" else to_dataset([row.value for row in chosen.raw_rows()])


_WRITERS: Mapping[str, Callable[[MemoryRows, Path], None]] = {
    ".json": _write_json,
    ".jsonl": _write_lines,
    ".parquet": _write_parquet,
    "": _write_folder,
}
