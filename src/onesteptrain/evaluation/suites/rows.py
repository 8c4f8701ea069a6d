"""Get the rows of a benchmark: from the Hugging Face hub, or from a copy on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onesteptrain.errors import MissingExtraError, PoolError

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".arrow": "arrow"}


def read_rows(hub: str, split: str, path: Path | None = None) -> Iterator[Mapping[str, object]]:
    """The rows in their order, images not decoded: each a dict with `bytes` or `path`, or whatever the file holds.

    Args:
        hub: Name on the hub, read where no path is given.
        split: Split to read; of a single file all rows are read.
        path: A Parquet, Arrow, JSONL or JSON file, a copy of the hub's repository, or a folder of `save_to_disk`.

    Raises:
        MissingExtraError: the package `datasets` is not installed.
        PoolError: the benchmark cannot be loaded.
    """
    if path is not None and not path.exists():
        raise PoolError(f"{path}: no such file or folder; give a copy of {hub}")
    if path is not None and path.is_file() and path.suffix not in (*_BUILDERS, ".json"):
        raise PoolError(f"{path}: not a file that can be read; give {hub} as {', '.join(_BUILDERS)}, .json or a folder")
    if path is not None and path.suffix == ".json":
        yield from _json_rows(path)
        return
    dataset = _load(hub, split, path)
    yield from _undecoded(dataset)


def _load(hub: str, split: str, path: Path | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("public benchmarks are read with the package datasets; install it") from error
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
