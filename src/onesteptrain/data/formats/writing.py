"""From a conversation back to a row, its pictures named so that they are found again."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onesteptrain.data.formats.memory import encoded
from onesteptrain.data.formats.places import PLACEHOLDER
from onesteptrain.data.formats.turns import ImageRef, Turn
from onesteptrain.errors import SampleError


def to_row(turns: Sequence[Turn], image_root: Path) -> dict[str, Any]:
    """The columns that hold a conversation as messages; `read_turns` gives it again.

    Args:
        turns: The conversation.
        image_root: Files inside this folder are named from there, others by their whole path; what is no file goes
            into the row.

    Raises:
        SampleError: a text holds the mark that stands for a picture, and there is none.
    """
    images = [_name(part, image_root) for turn in turns for part in turn.parts if isinstance(part, ImageRef)]
    holds_mark = any(PLACEHOLDER in turn.text for turn in turns)
    if holds_mark and not images:
        raise SampleError(f"a text holds {PLACEHOLDER} itself, which would be read as a picture")
    content = [_parts(turn, image_root) if holds_mark else _marked(turn) for turn in turns]
    messages = [{"role": turn.role, "content": said, **_flags(turn)} for turn, said in zip(turns, content, strict=True)]
    return {"messages": messages} if holds_mark else {"messages": messages, "images": images}


def _flags(turn: Turn) -> dict[str, Any]:
    """What takes an answer, or ranges of it, out of the loss, or weighs it; see `loss_weights`."""
    if turn.role != "assistant":
        return {}
    ends = [0, *(end for _, end in turn.unlearned)]
    starts = [*(start for start, _ in turn.unlearned), len(turn.text)]
    trained = [
        {"begin_offset": end, "end_offset": start - 1, "train": True}
        for end, start in zip(ends, starts, strict=True)
        if start > end
    ]
    weight = {} if turn.weight == 1 else {"loss_weight": turn.weight}
    return weight | ({"train_detail": trained} if turn.unlearned else {})


def _marked(turn: Turn) -> str:
    return "".join(PLACEHOLDER if isinstance(part, ImageRef) else part for part in turn.parts)


def _parts(turn: Turn, image_root: Path) -> str | list[dict[str, Any]]:
    if all(isinstance(part, str) for part in turn.parts):
        return turn.text
    return [
        {"type": "image_url", "image_url": {"url": _name(part, image_root)}}
        if isinstance(part, ImageRef)
        else {"type": "text", "text": part}
        for part in turn.parts
    ]


def _name(image: ImageRef, image_root: Path) -> str:
    source = image.source
    if isinstance(source, Path):
        path, root = source.resolve(), image_root.resolve()
        return str(path.relative_to(root) if path.is_relative_to(root) else path)
    content = source if isinstance(source, bytes) else encoded(source)
    return "data:image/*;base64," + base64.b64encode(content).decode()
