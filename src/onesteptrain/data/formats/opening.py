"""Which container a path is: told by what is in it, not by its name."""

from __future__ import annotations

from pathlib import Path

from onesteptrain.data.formats.arrow import SPLITS, STATE, open_hf_folder, open_parquet
from onesteptrain.data.formats.compression import open_unpacked, plain_name
from onesteptrain.data.formats.container import Container, readable
from onesteptrain.data.formats.json_rows import JsonArray, JsonLines
from onesteptrain.data.formats.many import files_of_rows, is_pattern, matching, open_many
from onesteptrain.data.formats.tar import TarRows
from onesteptrain.errors import PoolError

_NEEDED = (
    "a pool is a JSON, JSONL, Parquet or tar file, a folder of such files, a pattern such as 'data/*.jsonl.gz', or a "
    "folder made by save_to_disk"
)

_UNSUPPORTED = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"ARROW1": "an Arrow file; give the folder made by save_to_disk, or convert it to Parquet",
    b"\xff\xfe": "in UTF-16; convert it to UTF-8",
    b"\xfe\xff": "in UTF-16; convert it to UTF-8",
}


def open_container(path: Path) -> Container:
    """The container at a path, or of all files that a pattern stands for.

    Raises:
        PoolError: nothing there, or nothing that can be read.
    """
    if is_pattern(path):
        folder, found = matching(path)
        return open_many(path, folder, found, open_container)
    if not path.exists():
        raise PoolError(f"{path}: no such file or folder; {_NEEDED}")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_folder(path: Path) -> Container:
    if (path / SPLITS).exists():
        splits = ", ".join(sorted(folder.parent.name for folder in path.glob(f"*/{STATE}")))
        raise PoolError(f"{path}: holds the splits {splits}; a pool is one of them: give the folder of that split")
    if (path / STATE).exists():
        return open_hf_folder(path)
    if files := files_of_rows(path):
        return open_many(path, path, files, lambda file: _open_file(file, may_be_empty=True))
    raise PoolError(f"{path}: a folder without a dataset ({STATE}), Parquet, JSONL, JSON or tar files; {_NEEDED}")


def _open_file(path: Path, *, may_be_empty: bool = False) -> Container:
    start = _start(path)
    if start[257:262] == b"ustar" or start[:512] == bytes(512) or plain_name(path).suffix == ".tar":
        return TarRows(path)
    is_lines = plain_name(path).suffix in (".jsonl", ".ndjson")
    if start.startswith(b"PAR1"):
        return open_parquet(path)
    if start.startswith(b"["):
        return JsonArray(path)
    if start.startswith(b"{") or (is_lines and (start or may_be_empty)):
        return JsonLines(path)
    for mark, what in _UNSUPPORTED.items():
        if start.startswith(mark):
            raise PoolError(f"{path}: is {what}")
    raise PoolError(f"{path}: {f'starts with {start[:8]!r}' if start else 'is empty'}; {_NEEDED}")


def _start(path: Path) -> bytes:
    """The first bytes, unpacked, that are no byte order mark and no white space."""
    with readable(path), open_unpacked(path) as file:
        return file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
