"""Rows in memory: a `datasets.Dataset`, a pandas frame, or a list of dicts. No image is decoded early."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from onesteptrain.data.formats.arrow import dataset_rows
from onesteptrain.data.formats.container import RawRow, RowNumbers
from onesteptrain.data.formats.pictures import image_ref
from onesteptrain.data.formats.uids import content_digest
from onesteptrain.errors import PoolError

_IMAGES = {"image", "images"}
_ROWS_AT_ONCE = 64
"""Rows of a frame that become Python objects together."""

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

    @property
    def folder(self) -> Path:
        """The working directory."""
        return Path()

    def raw_rows(self, start: int = 0, *, ids_until: int = 0) -> Iterator[RawRow]:
        """The rows from `start` on, in order."""
        if self.kind == "dataset":
            return dataset_rows(self.path, self.source, start, ids_until)
        rows = itertools.islice(self.source, start, None) if self.kind == "list" else _frame_rows(self.source, start)
        return (RawRow(f"{self.path} row {row}", _mapped(value, _plain)) for row, value in enumerate(rows, start))

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
        try:
            _WRITERS[suffix](chosen, out)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, PoolError):
                raise
            raise PoolError(f"the rows cannot be written as {suffix or 'a folder'}: {error}; write JSONL") from error
        return chosen.count()


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

    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise PoolError(f"row {number} is a {type(row).__name__}, which fits into no columns; leave it out")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _uniform([_mapped(row.get(name), _for_arrow) for row in rows]) for name in names}
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
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise PoolError(f"the rows do not fit into typed columns: {error}; mend them, or write JSON") from error


def _frame_rows(frame: Any, start: int) -> Iterator[dict[str, Any]]:
    """The rows of a frame from `start` on, with None in place of what is missing."""
    for first in range(start, len(frame), _ROWS_AT_ONCE):
        some = frame.iloc[first : first + _ROWS_AT_ONCE]
        yield from some.astype(object).where(some.notna(), None).to_dict("records")


def _mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A value with a function applied to all that is neither dict nor list; tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): _mapped(item, leaf) for key, item in value.items()}
    return [_mapped(item, leaf) for item in value] if isinstance(value, list | tuple) else leaf(value)


def _plain(leaf: Any) -> Any:
    """What a file would hold: arrays as lists, numbers of numpy as numbers."""
    return _mapped(leaf.tolist(), _plain) if hasattr(leaf, "tolist") else leaf


def _for_arrow(leaf: Any) -> Any:
    return {"bytes": encoded(leaf), "path": None} if isinstance(leaf, Image.Image) else leaf


def _for_json(leaf: Any) -> Any:
    content = encoded(leaf) if isinstance(leaf, Image.Image) else leaf
    return "data:image/*;base64," + base64.b64encode(content).decode() if isinstance(content, bytes) else content


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


def _write_json(chosen: MemoryRows, out: Path) -> None:
    lines = ",\n".join(_json_lines(chosen))
    out.write_text(f"[\n{lines}\n]\n" if lines else "[]\n", encoding="utf-8", errors="backslashreplace")


def _write_lines(chosen: MemoryRows, out: Path) -> None:
    out.write_text("".join(f"{line}\n" for line in _json_lines(chosen)), encoding="utf-8", errors="backslashreplace")


def _json_lines(chosen: MemoryRows) -> Iterator[str]:
    values = (_mapped(row.value, _for_json) for row in chosen.raw_rows())
    return (json.dumps(value, ensure_ascii=False, default=str) for value in values)


def _as_dataset(chosen: MemoryRows) -> Any:
    return chosen.source if chosen.kind == "dataset" else to_dataset([row.value for row in chosen.raw_rows()])


_WRITERS: Mapping[str, Callable[[MemoryRows, Path], None]] = {
    ".json": _write_json,
    ".jsonl": _write_lines,
    ".parquet": lambda chosen, out: pq.write_table(_as_dataset(chosen).with_format("arrow")[:], out),
    "": lambda chosen, out: _as_dataset(chosen).save_to_disk(str(out)),
}
