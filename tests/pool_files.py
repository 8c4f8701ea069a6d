"""Small pools for tests: the same conversations in every format, and every container to put them in."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

DIALOGUES = [
    ("one", ["a.png"], [("user", "{}What is it?"), ("assistant", "A square.")]),
    (
        "two",
        ["a.png", "b.png"],
        [("user", "Is {} like {}?"), ("assistant", "No."), ("user", "Ö?"), ("assistant", "Ja.")],
    ),
    ("three", [], [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4")]),
]
"""Id, images and turns; "{}" is the place of the next image."""


def _marked(text: str) -> str:
    return text.replace("{}", "<image>")


def llava(uid, images, turns):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    row = {"id": uid, "conversations": [{"from": names[r], "value": _marked(t)} for r, t in turns]}
    return row | {"image": images[0] if len(images) == 1 else images} if images else row


def sharegpt(uid, images, turns):
    system = [t for r, t in turns if r == "system"]
    row = llava(uid, [], [turn for turn in turns if turn[0] != "system"])
    return row | {"images": images} | ({"system": system[0]} if system else {})


def messages(uid, images, turns):
    return {"id": uid, "messages": [{"role": r, "content": _marked(t)} for r, t in turns], "images": images}


def _in_parts(text, image_parts):
    first, *others = text.split("{}")
    parts = [{"type": "text", "text": first}]
    for other in others:
        parts += [next(image_parts), {"type": "text", "text": other}]
    return [part for part in parts if part.get("text") != ""]


def openai(uid, images, turns):
    parts = iter([{"type": "image_url", "image_url": {"url": image}} for image in images])
    content = [{"role": r, "content": _in_parts(t, parts) if r == "user" else t} for r, t in turns]
    return {"id": uid, "messages": content}


def trl_messages(uid, images, turns):
    parts = iter([{"type": "image"} for _ in images])
    return {"id": uid, "messages": [{"role": r, "content": _in_parts(t, parts)} for r, t in turns], "images": images}


def trl_prompt(uid, images, turns):
    row = trl_messages(uid, images, turns)
    said = row.pop("messages")
    return row | {"prompt": said[:-1], "completion": said[-1:]}


SCHEMAS = {
    "llava": llava,
    "sharegpt": sharegpt,
    "messages": messages,
    "openai": openai,
    "trl": trl_messages,
    "trl prompt": trl_prompt,
}


def write_json(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arrow_table(rows: list[Any]) -> pa.Table:
    """The rows in columns of one type each, where JSON may mix them: one image and a list, text and parts."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    if any(isinstance(value, list) for value in columns.get("image", [])):
        columns["image"] = [[value] if isinstance(value, str) else value for value in columns["image"]]
    said = [message for conversation in columns.get("messages", []) for message in conversation]
    if any(isinstance(message["content"], list) for message in said):
        columns["messages"] = [[_content_in_parts(message) for message in row] for row in columns["messages"]]
    return pa.table(columns)


def _content_in_parts(message):
    content = message["content"]
    return message | {"content": [{"type": "text", "text": content}] if isinstance(content, str) else content}


def write_parquet(path: Path, rows: list[Any]) -> Path:
    pq.write_table(arrow_table(rows), path, row_group_size=2)
    return path


def write_parquet_folder(path: Path, rows: list[Any]) -> Path:
    path.mkdir()
    table = arrow_table(rows)
    pq.write_table(table.slice(0, 1), path / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(1), path / "train-00001-of-00002.parquet")
    return path


def write_hf_folder(path: Path, rows: list[Any]) -> Path:
    datasets.disable_progress_bars()
    datasets.Dataset(arrow_table(rows)).save_to_disk(path, num_shards=min(2, len(rows)))
    return path


def write_gzip(path: Path, rows: list[Any]) -> Path:
    half = len(rows) // 2
    lines = [f"{json.dumps(row)}\n".encode() for row in rows]
    path.write_bytes(gzip.compress(b"".join(lines[:half])) + gzip.compress(b"".join(lines[half:])))
    return path


def write_zstd(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(pa.compress(json.dumps(rows, indent=2).encode(), "zstd", asbytes=True))
    return path


def write_jsonl_folder(path: Path, rows: list[Any]) -> Path:
    (path / "b").mkdir(parents=True)
    write_gzip(path / "a.jsonl.gz", rows[:2])
    write_jsonl(path / "b" / "0.jsonl", rows[2:5])
    write_jsonl(path / "b" / "1.jsonl", rows[5:])
    return path


def write_tar(path: Path, rows: list[Any], mode: str = "w") -> Path:
    """Rows as WebDataset has them; an id is a part of the JSON, so that ids may repeat."""
    with tarfile.open(path, mode) as tar:
        for number, row in enumerate(rows):
            add_member(tar, f"{number:06d}.json", json.dumps(row).encode())
    return path


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


CONTAINERS = {
    "pool.json": write_json,
    "pool.jsonl": write_jsonl,
    "pool.jsonl.gz": write_gzip,
    "pool.json.zst": write_zstd,
    "lines": write_jsonl_folder,
    "pool.tar": write_tar,
    "pool.tar.gz": lambda path, rows: write_tar(path, rows, "w:gz"),
    "pool.parquet": write_parquet,
    "parquet": write_parquet_folder,
    "hf": write_hf_folder,
}


def png(color: str = "red", size: tuple[int, int] = (4, 3), kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def qa(question: Any = "Q", answer: Any = "A", **columns: Any) -> dict[str, Any]:
    """A row of the format messages."""
    return columns | {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
