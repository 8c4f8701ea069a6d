"""Small samples and checkpoints that tests share; nothing here checks anything."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from onesteptrain.data.pool import ImageRef, Sample, Turn

ARCHITECTURES = ("internvl", "qwen3_vl", "qwen2_5_vl", "smolvlm", "idefics3", "llava")
TEXTS = ["What is 3 plus 4? It is 7.\nThe answer is 7.", "Which is larger? The answer is B."] * 3


@functools.cache
def checkpoint(architecture: str = "qwen3_vl") -> Path:
    """A tiny checkpoint with its real processor, built once a session."""
    from onesteptrain.synthetic.architectures import build_checkpoint

    folder = Path(tempfile.mkdtemp(prefix="ost-test-")) / architecture
    return build_checkpoint(architecture, folder, texts=TEXTS)


def png(seed: int, width: int = 48, height: int = 32) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sample(row: int, *, images: int = 1, words: int = 3, group: str = "a") -> Sample:
    """A single-turn sample whose length and picture depend on its row."""
    pictures = tuple(ImageRef(png(10 * row + k, 32 + 16 * (row % 3)), f"{row}-{k}") for k in range(images))
    question = f"What is {row} plus {row % 7}?"
    answer = " ".join(["It is seven."] * (1 + row % words)) + f"\nThe answer is {row + row % 7}."
    return Sample(f"s{row}", row, (Turn("user", (*pictures, question)), Turn("assistant", (answer,))), {"group": group})


def write_pool(folder: Path, rows: int, *, name: str = "pool.jsonl", start: int = 0) -> Path:
    """A messages JSONL with one picture a row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    lines = []
    for row in range(start, start + rows):
        (folder / "images" / f"{row}.png").write_bytes(png(row, 32 + 16 * (row % 3)))
        one = sample(row)
        messages = [
            {"role": "user", "content": "<image>" + one.turns[0].text},
            {"role": "assistant", "content": one.turns[1].text},
        ]
        facts = {"id": f"s{row}", "messages": messages, "images": [f"images/{row}.png"], "group": "ab"[row % 2]}
        lines.append(json.dumps(facts))
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
