"""Good inputs of every kind that is read, small, from which cases are made by edits."""

from __future__ import annotations

import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.pool_files import DIALOGUES, SCHEMAS, arrow_table, data_uri

_PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"


@functools.cache
def rows() -> tuple[dict[str, Any], ...]:
    """Rows of every shape: those of docs/inputs.md, and the same conversations in all formats."""
    blocks = re.findall(r"^```jsonl[^\n]*\n(.*?)^```$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    shown = [json.loads(line) for block in blocks for line in block.splitlines() if line.startswith("{")]
    spelled = [make(*dialogue) for make in SCHEMAS.values() for dialogue in DIALOGUES]
    flagged = [{"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A b.", "loss": False,
                 "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": True}]}], "weight": 2}]  # fmt: skip
    inside = [
        {"messages": rows["messages"], "image": data_uri(picture)}
        for rows, picture in zip(spelled, pictures(), strict=False)
        if "messages" in rows
    ]
    return tuple(row for row in (*shown, *spelled, *flagged, *inside) if isinstance(row, dict))


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """A picture of each format and mode that is opened, of 9 x 7 noise."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    colour = Image.fromarray(noise[..., :3])
    modes = {
        "RGB": colour,
        "RGBA": Image.fromarray(noise),
        "L": colour.convert("L"),
        "LA": colour.convert("LA"),
        "P": colour.quantize(16),
        "1": colour.convert("1"),
        "CMYK": colour.convert("CMYK"),
        "I;16": Image.fromarray(noise[..., 0].astype(np.uint16) * 257),
        "I": Image.fromarray(noise[..., 0].astype(np.int32) * 999),
        "F": Image.fromarray(noise[..., 0].astype(np.float32) / 255),
        "YCbCr": colour.convert("YCbCr"),
        "LAB": colour.convert("LAB"),
    }
    formats = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
    made = [encoded(image, kind) for kind in formats for image in modes.values()]
    more = [
        encoded(colour, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    ]
    moving = [
        encoded(colour, kind, save_all=True, append_images=[modes["L"].convert("RGB")])
        for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO")
    ]
    note = Image.Exif()
    note[274] = 6
    turned = [encoded(colour, kind, exif=note) for kind in ("JPEG", "PNG", "WEBP")]
    return tuple(content for content in (*made, *more, *moving, *turned) if content)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file; nothing where the format does not hold its mode."""
    stream = io.BytesIO()
    try:
        image.save(stream, kind, **options)
    except (OSError, ValueError, KeyError):
        return b""
    return stream.getvalue()


@functools.cache
def parquets() -> tuple[bytes, ...]:
    """Pools as Parquet, of several encodings."""
    table = arrow_table([make(*dialogue) for make in (SCHEMAS["messages"],) for dialogue in DIALOGUES] * 2)
    kinds = (
        {},
        {"compression": "zstd"},
        {"use_dictionary": False},
        {"row_group_size": 1},
        {"data_page_version": "2.0", "compression": "gzip"},
    )
    return tuple(parquet(table, **kind) for kind in kinds)


@functools.cache
def streams() -> tuple[bytes, ...]:
    """Pools as Arrow streams, in one batch and in several."""
    table = arrow_table([SCHEMAS["messages"](*dialogue) for dialogue in DIALOGUES] * 2)
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    return tuple(stream(table, size, how) for size in (2, 100) for how in (None, packed))


def parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def stream(table: pa.Table, rows_a_batch: int = 100, options: Any = None) -> bytes:
    """A table as the bytes of an Arrow stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return sink.getvalue()


STATE: dict[str, Any] = {
    "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
    "_fingerprint": "0123",
    "_format_columns": None,
    "_format_kwargs": {},
    "_format_type": None,
    "_output_all_columns": False,
    "_split": None,
}


@functools.cache
def score_table() -> pa.Table:
    """A score table as `one_step` writes it, in short."""
    drawn = np.random.default_rng(0).normal(size=(24, 4))
    columns = {
        "uid": [f"u{row}" for row in range(24)],
        "row": range(24),
        "score": [*drawn[:-1, 0], None],
        "reason": [*[None] * 23, "image missing"],
    }
    signals = {name: pa.array(drawn[:, 1 + place]) for place, name in enumerate(("harm", "gain", "loss"))}
    tokens = {"tokens": pa.array(range(24)), "token_utilities": [[1.0, 2.0]] * 24}
    return pa.table(columns | signals | tokens)


JOB: dict[str, Any] = {
    "pool": "pool.jsonl",
    "heldout": "heldout.jsonl",
    "anchor_by": ["topic"],
    "proxy": "proxy",
    "out": "run",
    "warmup_share": 0.05,
    "score": {"optimizer": "adam", "step_size": 1e-4},
    "select": {"quota": "topic"},
    "keep": ["20%", "50%"],
}

RECORDS: dict[str, Any] = {
    "config.yaml": {"score": {"pool": {"path": "pool.jsonl"}, "method": {"name": "random", "options": {}}, "seed": 0}},
    "provenance.json": {
        "schema": 1,
        "inputs": {"pool": "ab"},
        "files": {"scores.parquet": "00"},
        "seconds": 1.5,
        "versions": {"torch": "2"},
    },
    "results.json": {"rows": 4, "subsets": {"20%": "subset.jsonl"}, "targets": {}, "report": "report.html"},
}
"""Files of a run directory."""


def job_yaml(values: Any) -> bytes:
    """A job as YAML; as JSON, which is YAML too, where it holds what YAML does not dump."""
    try:
        return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return json.dumps(values).encode()
