"""The rows of a public benchmark: where they are read from, and how their columns become a question.

What is not as the benchmark's card says raises a PoolError of one line, which names the row.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.data.formats.pictures import image_ref
from onesteptrain.data.pool import ImageRef, Turn
from onesteptrain.errors import PoolError, SampleError
from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.results import Metrics

REASON = 'Reason step by step, and end with "The answer is X.", where X is'
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".arrow": "arrow"}


class Row(NamedTuple):
    """One row of a benchmark, in its own columns."""

    columns: Mapping[str, object]
    where: str
    """How messages call it."""

    image_root: Path
    """Folder that relative image paths start from."""


@dataclass(frozen=True)
class Suite:
    """A public benchmark."""

    hub: str
    """Name of the data set on the Hugging Face hub."""

    splits: tuple[str, ...]
    """Splits with right answers; the first is the default."""

    question: Callable[[Row], Question | None]
    """Reads a row; nothing for a row that the benchmark itself left blank, a PoolError for one in another schema."""

    metrics: Metrics | None = None
    """Its own measures beside the accuracy."""


def read_rows(hub: str, split: str, path: Path | None = None) -> Iterator[Mapping[str, object]]:
    """The rows in their order, images not decoded: each a dict with `bytes` or `path`, or whatever the file holds.

    Args:
        hub: Name on the hub, read where no path is given.
        split: Split to read; of a single file all rows are read.
        path: A Parquet, Arrow, JSONL or JSON file, a copy of the hub's repository, or a folder of `save_to_disk`.

    Raises:
        PoolError: the benchmark cannot be loaded.
    """
    if path is not None and not path.exists():
        raise PoolError(f"{path}: no such file or folder; give a copy of {hub}")
    if path is not None and path.is_file() and path.suffix not in (*_BUILDERS, ".json"):
        raise PoolError(f"{path}: not a file that can be read; give {hub} as {', '.join(_BUILDERS)}, .json or a folder")
    if path is not None and path.suffix == ".json":
        yield from _json_rows(path)
        return
    yield from _undecoded(_load(hub, split, path))


def text_of(row: Row, name: str) -> str:
    """A column that must hold a text or a number."""
    value = row.columns.get(name)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    raise PoolError(f"{row.where}: {name} is {value!r}; it must be a text, so give the benchmark in its own schema")


def texts_of(row: Row, name: str) -> list[str]:
    """A column that holds a list of texts, or nothing."""
    value = row.columns.get(name)
    if value is None:
        return []
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise PoolError(
        f"{row.where}: {name} is {type(value).__name__} {str(value)[:60]!r}; it must be a list of texts, "
        "so give the benchmark in its own schema"
    )


def fields_of(row: Row, *names: str) -> dict[str, object]:
    """The columns that a row has of these, for grouping."""
    return {name: row.columns[name] for name in names if row.columns.get(name) is not None}


def image_of(row: Row, *names: str) -> ImageRef:
    """The image in the first of these columns that is filled."""
    value = next((row.columns[name] for name in names if row.columns.get(name)), None)
    if value is None:
        raise PoolError(f"{row.where}: there is no image in {' or '.join(names)}; every question needs one")
    try:
        return image_ref(value, row.image_root)
    except SampleError as error:
        raise PoolError(f"{row.where}: {error}") from error


def asked(image: ImageRef, question: str, options: list[str], ending: str) -> tuple[Turn, ...]:
    """The prompt: the image, the question, a line an option, and how to end the reply."""
    listed = [f"({letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return (Turn("user", (image, "\n".join([question, *listed, ending]))),)


def option_at(row: Row, options: list[str], letter: str) -> str:
    """The text of the option with a letter."""
    place = string.ascii_uppercase.find(letter) if len(letter) == 1 else -1
    if not 0 <= place < len(options):
        raise PoolError(f"{row.where}: the answer {letter!r} is no letter of its {len(options)} options; mend the row")
    return options[place]


def _load(hub: str, split: str, path: Path | None) -> Any:
    import datasets

    try:
        if path is None:
            return datasets.load_dataset(hub, split=split)
        if path.is_file():
            return datasets.load_dataset(_BUILDERS[path.suffix], data_files={split: str(path)}, split=split)
        if (path / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(path))[split]
        if (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path), split=split)
    except Exception as error:  # the hub, the cache and the readers raise whatever they like
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise PoolError(
            f"{path or hub}: the split {split} cannot be loaded ({cause}); "
            f"give a copy of {hub} with --suite-path, as Parquet, JSONL, JSON or a folder"
        ) from error


def _undecoded(dataset: Any) -> Iterator[Mapping[str, object]]:
    import datasets

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    yield from dataset


def _json_rows(path: Path) -> Iterator[Mapping[str, object]]:
    """The rows of an array, or of an object whose keys are the ids of its rows, as LogicVista and MathVista have it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PoolError(f"{path}: no JSON ({error}); give the benchmark's own file") from error
    if isinstance(content, dict):
        content = [{"id": key, "pid": key, **_object(path, row)} for key, row in content.items()]
    yield from (_object(path, row) for row in content)


def _object(path: Path, row: object) -> Mapping[str, object]:
    if not isinstance(row, dict):
        raise PoolError(f"{path}: a row is {str(row)[:60]!r}, not an object; give the benchmark's own file")
    return row
