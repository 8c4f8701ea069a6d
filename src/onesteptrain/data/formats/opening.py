"""Which container a path is: told by what is in it, not by its name."""

from __future__ import annotations

from pathlib import Path

from onesteptrain.data.formats.arrow import SPLITS, STATE, open_hf_folder, open_parquet
from onesteptrain.data.formats.container import Container
from onesteptrain.data.formats.json_rows import JsonArray, JsonLines
from onesteptrain.errors import PoolError

_NEEDED = "a pool is a JSON or JSONL file, a Parquet file, a folder of Parquet files, or a folder made by save_to_disk"

_UNSUPPORTED = {
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"ARROW1": "an Arrow file; give the folder made by save_to_disk, or convert it to Parquet",
    b"\xff\xfe": "in UTF-16; convert it to UTF-8",
    b"\xfe\xff": "in UTF-16; convert it to UTF-8",
}


def open_container(path: Path) -> Container:
    """The container at a path.

    Raises:
        PoolError: nothing there, or nothing that can be read.
    """
    if not path.exists():
        raise PoolError(f"{path}: no such file or folder; {_NEEDED}")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_folder(path: Path) -> Container:
    if (path / SPLITS).exists():
        splits = ", ".join(sorted(folder.parent.name for folder in path.glob(f"*/{STATE}")))
        raise PoolError(f"{path}: holds the splits {splits}; a pool is one of them: give the folder of that split")
    if (path / STATE).exists():
        return open_hf_folder(path)
    if any(path.rglob("*.parquet")):
        return open_parquet(path)
    raise PoolError(f"{path}: a folder without a dataset ({STATE}) or Parquet files; {_NEEDED}")


def _open_file(path: Path) -> Container:
    start = _start(path)
    if start.startswith(b"PAR1"):
        return open_parquet(path)
    if start.startswith(b"["):
        return JsonArray(path)
    if start.startswith(b"{") or (start and path.suffix in (".jsonl", ".ndjson")):
        return JsonLines(path)
    for mark, what in _UNSUPPORTED.items():
        if start.startswith(mark):
            raise PoolError(f"{path}: is {what}")
    raise PoolError(f"{path}: {f'starts with {start[:8]!r}' if start else 'is empty'}; {_NEEDED}")


def _start(path: Path) -> bytes:
    """The first bytes that are no byte order mark and no white space."""
    try:
        with path.open("rb") as file:
            start = file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise PoolError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from error
    return start
