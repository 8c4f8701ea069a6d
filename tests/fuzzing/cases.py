"""The kinds of cases: how files are made by edits, and what is done with them."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from onesteptrain.data.anchors import find_leaks
from onesteptrain.data.deduplication import FinalAnswers, guard
from onesteptrain.data.exclusion import read_excluded
from onesteptrain.data.formats.turns import ImageRef
from onesteptrain.data.images import image_changes, image_size, load_for_comparison, load_image, thumbnail_html
from onesteptrain.data.pool import Pool, Sample, Unreadable, open_pool, plain_text, write_subset
from onesteptrain.errors import OneStepError, SampleError
from onesteptrain.evaluation.answers import extract_answer, same_answer
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.plain_yaml import parse_yaml
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import Record, ScoreTable, to_table, write_table
from tests.fuzzing import corpus
from tests.fuzzing.mutations import EDITS, Edit, changed_bytes, changed_value, dumped, mended_png

Files = Mapping[str, bytes]
"""What a case is made of: contents by their names in its folder."""

_LONGEST = 1200
"""Characters of an error or reason, with room for where it is."""

_FINALS = FinalAnswers(extract_answer, same_answer)


@dataclass(frozen=True)
class Kind:
    """One way in which files reach the project."""

    files: SearchStrategy[Files]
    use: Callable[[Path], None]
    """What is done with the folder; the project's own errors are no finding."""

    share: int
    """Cases of a hundred."""


def run(kind: Kind, folder: Path) -> None:
    """Use the files of a case; what it raises is a finding."""
    try:
        kind.use(folder)
    except OneStepError as error:
        _check_words(str(error))


def _check_words(text: str) -> None:
    assert text, "an error without words"
    assert text.isprintable(), f"not printable: {text!r}"
    assert len(text) <= _LONGEST, f"{len(text)} characters: {text[:200]!r}"


def _use_pool(path: Path, folder: Path) -> None:
    pool = open_pool(path, image_root=folder)
    rows = list(pool)
    assert len(pool) == len(rows)
    for row in rows:
        _use_row(row)
    assert pool.fingerprint
    pool._repr_html_()
    guard(pool, finals=_FINALS, against={"anchors": _anchors()})
    find_leaks(_anchors(), pool)
    _write(pool, rows, path, folder)
    placed = [(row.uid, row.row, Record(0.0) if isinstance(row, Sample) else Record(reason=row.reason)) for row in rows]
    write_table(to_table(placed), folder / "scores.parquet")
    assert ScoreTable(folder / "scores.parquet").rows == len(rows)


def _use_row(row: Sample | Unreadable) -> None:
    row.uid.encode()
    if isinstance(row, Unreadable):
        _check_words(row.reason)
        return
    plain_text(row, "user")
    for image in row.images:
        _use_picture(image)


def _use_picture(image: ImageRef) -> None:
    image_changes(image)
    for look in (image_size, load_image, load_for_comparison):
        try:
            look(image)
        except SampleError as error:
            _check_words(str(error))


def _write(pool: Pool, rows: Sequence[Sample | Unreadable], path: Path, folder: Path) -> None:
    """What is written reads as the rows that were chosen did."""
    chosen = [row for row in rows if row.row % 2 == 0]
    out = folder / f"subset{path.suffix}"
    assert write_subset(pool, [row.row for row in chosen], out) == len(chosen)
    if any(isinstance(row, Sample) for row in chosen):
        again = list(open_pool(out, image_root=folder))
        assert [getattr(row, "turns", None) for row in again] == [getattr(row, "turns", None) for row in chosen]


def _use_memory(folder: Path) -> None:
    rows = json.loads((folder / "pool.json").read_bytes())
    if isinstance(rows, list):
        pool = open_pool(rows, image_root=folder)
        read = list(pool)
        for row in read:
            _use_row(row)
        for name in ("subset.jsonl", "subset.parquet"):
            with contextlib.suppress(OneStepError):
                write_subset(pool, [row.row for row in read], folder / name)


@functools.cache
def _anchors() -> list[Sample]:
    rows = corpus.rows()
    return [row for row in open_pool([rows[0], *rows[-40::4]]) if isinstance(row, Sample)][:6]


def _use_pictures(folder: Path) -> None:
    for path in sorted(folder.glob("picture*")):
        _use_picture(ImageRef(path, path.name, root=folder))
        thumbnail_html(ImageRef(path.read_bytes(), "bytes"))


def _use_scores(folder: Path) -> None:
    table = ScoreTable(folder / "scores.parquet")
    table._repr_html_()
    table.read()
    for name in ("score", "harm"):
        with contextlib.suppress(OneStepError):
            table.numbers(name)
    for options in (SelectOptions(), SelectOptions(gate="none", prefer="top")):
        with contextlib.suppress(OneStepError):
            select_rows(table, keep="50%", options=options)


def _use_exclusion(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(OneStepError):
            read_excluded(path, enumerate(["u1", "u2"]), "ab")


def _use_records(folder: Path) -> None:
    found = Run(folder)
    for read in (
        lambda: found.config,
        lambda: found.provenance,
        lambda: parse_yaml((folder / "config.yaml").read_text(errors="replace"), "config.yaml"),
    ):
        try:
            read()
        except OneStepError as error:
            _check_words(str(error))


def _use_checkpoint(folder: Path) -> None:
    from onesteptrain.proxy import load_proxy

    load_proxy(folder)


def _pieces(strategy: Callable[[Edit, list[Edit]], Files]) -> SearchStrategy[Files]:
    """A case of one drawn choice, among good inputs and ways to put them, and of edits."""
    return st.builds(strategy, st.builds(Edit, *[st.integers(0, 2**31 - 1)] * 3), EDITS)


def _picked(items: Sequence[Any], number: int) -> Any:
    return items[number % len(items)]


def _rows(choice: Edit, edits: list[Edit]) -> list[Any]:
    """A few rows, some of them with edits."""
    there = corpus.rows()
    few = [_picked(there, choice.place + step * (1 + choice.kind % 97)) for step in range(1 + choice.value % 3)]
    return list(value) if isinstance(value := changed_value(few, edits), list) else [value]


def _beside() -> Files:
    return {"a.png": corpus.pictures()[0], "b.png": corpus.pictures()[1]}


def _rows_in_files(choice: Edit, edits: list[Edit]) -> Files:
    rows = _rows(choice, edits)
    match choice.value % 5:
        case 0:
            return {"pool.json": dumped(rows).encode(), **_beside()}
        case 1:
            with contextlib.suppress(
                pa.ArrowException, UnicodeEncodeError, TypeError, ValueError, AttributeError, OverflowError
            ):
                return {"pool.parquet": corpus.parquet(pa.Table.from_pylist(rows)), **_beside()}
        case 2:
            with contextlib.suppress(
                pa.ArrowException, UnicodeEncodeError, TypeError, ValueError, AttributeError, OverflowError
            ):
                return (
                    _dataset(corpus.stream(pa.Table.from_pylist(rows)), json.dumps(corpus.STATE).encode()) | _beside()
                )
    return {"pool.jsonl": "\n".join(map(dumped, rows)).encode(), **_beside()}


def _dataset(shard: bytes, state: bytes) -> dict[str, bytes]:
    return {"pool/data-00000-of-00001.arrow": shard, "pool/state.json": state, "pool/dataset_info.json": b"{}"}


def _bytes_of_json(choice: Edit, edits: list[Edit]) -> Files:
    rows = _rows(choice, [])
    name, text = (
        ("pool.json", json.dumps(rows)) if choice.value % 2 else ("pool.jsonl", "\n".join(map(json.dumps, rows)))
    )
    return {name: changed_bytes(text.encode(), edits, corpus.streams()), **_beside()}


def _bytes_of_parquet(choice: Edit, edits: list[Edit]) -> Files:
    return {"pool.parquet": changed_bytes(_picked(corpus.parquets(), choice.place), edits, corpus.parquets())}


def _bytes_of_stream(choice: Edit, edits: list[Edit]) -> Files:
    shard = _picked(corpus.streams(), choice.place)
    if choice.value % 6:
        return _dataset(changed_bytes(shard, edits, corpus.streams()), json.dumps(corpus.STATE).encode())
    if choice.value % 2:
        return _dataset(shard, dumped(changed_value(corpus.STATE, edits)).encode())
    return _dataset(shard, changed_bytes(json.dumps(corpus.STATE).encode(), edits))


def _changed_picture(choice: Edit, edits: list[Edit]) -> bytes:
    content = changed_bytes(_picked(corpus.pictures(), choice.place), edits, corpus.pictures())
    return mended_png(content) if content.startswith(b"\x89PNG") and choice.value % 4 else content


def _bytes_of_pictures(choice: Edit, edits: list[Edit]) -> Files:
    return {"picture": _changed_picture(choice, edits)}


def _picture_in_row(choice: Edit, edits: list[Edit]) -> Files:
    """A changed picture as data URI, as bare base64, or its base64 with edits."""
    text = base64.b64encode(_changed_picture(choice, edits[:1]))
    text = changed_bytes(text, edits[1:]) if choice.value % 2 else text
    shown = (b"data:image/png;base64," if choice.value % 3 else b"") + text
    image = shown.decode("utf-8", "replace")
    value = (image, [image], {"bytes": image}, {"url": image})[choice.value % 4]
    row = {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "4"}], "image": value}
    return {"pool.jsonl": json.dumps(row).encode()}


def _score_tables(choice: Edit, edits: list[Edit]) -> Files:
    table = corpus.score_table()
    if choice.value % 2:
        rows = changed_value(table.to_pylist(), edits)
        with contextlib.suppress(
            pa.ArrowException, UnicodeEncodeError, TypeError, ValueError, AttributeError, OverflowError
        ):
            return {
                "scores.parquet": corpus.parquet(pa.Table.from_pylist(rows)),
                "reference.parquet": corpus.parquet(table),
            }
    content = changed_bytes(corpus.parquet(table), edits, corpus.parquets())
    return {"scores.parquet": content, "provenance.json": json.dumps({"files": {}}).encode()}


def _exclusions(choice: Edit, edits: list[Edit]) -> Files:
    lists = {
        "a.txt": b"u1\nu2\n",
        "a.csv": b"uid,why\nu1,x\nu2,y\n",
        "a.jsonl": b'"u1"\n{"uid": "u2"}\n',
        "a.json": b'["u1", {"uid": "u2"}]',
    }
    facts = {"onesteptrain.guard": "1", "pool": "ab"}
    table = pa.table(
        {"row": [0, 1], "uid": ["u1", "u2"], "cluster": [0, 0], "kind": ["kept", "same"], "leak_of": [None, "x"]}
    )
    lists["a.parquet"] = corpus.parquet(table.replace_schema_metadata(facts if choice.value % 3 else {}))
    name = _picked(list(lists), choice.place)
    return {name: changed_bytes(lists[name], edits, corpus.parquets())}


def _records(choice: Edit, edits: list[Edit]) -> Files:
    made = {}
    for name, value in corpus.RECORDS.items():
        changed = changed_value({**value, "run": corpus.JOB}, edits) if choice.value % 2 else value
        text = corpus.job_yaml(changed) if name.endswith("yaml") else dumped(changed).encode()
        made[name] = text if choice.value % 2 else changed_bytes(text, edits)
    return made


@functools.cache
def _checkpoint() -> Files:
    import onesteptrain.synthetic

    folder = Path(onesteptrain.synthetic.__file__).parent / "checkpoints" / "proxy"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _checkpoints(choice: Edit, edits: list[Edit]) -> Files:
    files = dict(_checkpoint())
    name = _picked(sorted(files), choice.place)
    if name.endswith(".json") and choice.value % 2:
        return files | {name: dumped(changed_value(json.loads(files[name]), edits)).encode()}
    if name.endswith(".safetensors") and choice.value % 4:
        edits = [edit._replace(place=edit.place % 2000) for edit in edits]  # the header
    if choice.value % 11 == 0:
        files["adapter_config.json"] = changed_bytes(b'{"base_model_name_or_path": "base", "peft_type": "LORA"}', edits)
        return files
    if choice.value % 13 == 0:
        files["pytorch_model.bin"] = changed_bytes(files.pop("model.safetensors"), edits)
        return files
    return files | {name: changed_bytes(files[name], edits)}


def _anywhere(use: Callable[[Path, Path], None]) -> Callable[[Path], None]:
    return lambda folder: use(next(path for path in sorted(folder.iterdir()) if path.name.startswith("pool")), folder)


KINDS: Mapping[str, Kind] = {
    "rows": Kind(_pieces(_rows_in_files), _anywhere(_use_pool), 36),
    "rows in memory": Kind(
        _pieces(lambda choice, edits: {"pool.json": json.dumps(_rows(choice, edits)).encode(), **_beside()}),
        _use_memory,
        8,
    ),
    "JSON": Kind(_pieces(_bytes_of_json), _anywhere(_use_pool), 8),
    "Parquet": Kind(_pieces(_bytes_of_parquet), _anywhere(_use_pool), 8),
    "Arrow": Kind(_pieces(_bytes_of_stream), _anywhere(_use_pool), 8),
    "pictures": Kind(_pieces(_bytes_of_pictures), _use_pictures, 14),
    "pictures in rows": Kind(_pieces(_picture_in_row), _anywhere(_use_pool), 6),
    "score tables": Kind(_pieces(_score_tables), _use_scores, 5),
    "exclusions": Kind(_pieces(_exclusions), _use_exclusion, 2),
    "records": Kind(_pieces(_records), _use_records, 4),
    "checkpoints": Kind(_pieces(_checkpoints), _use_checkpoint, 1),
}
