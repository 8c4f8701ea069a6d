"""From a conversation back to a row of some format, its pictures named so that they are found again."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onesteptrain.data.formats.memory import encoded
from onesteptrain.data.formats.schemas import FormatName
from onesteptrain.data.formats.turns import PLACEHOLDER, ImageRef, Turn
from onesteptrain.errors import SampleError

_FROM = {"user": "human", "assistant": "gpt", "system": "system"}


def to_row(turns: Sequence[Turn], format: FormatName, image_root: Path) -> dict[str, Any]:  # noqa: A002
    """The columns of a format that hold a conversation; `read_turns` gives it again.

    Args:
        turns: The conversation.
        format: Which; trl and openai hold messages too.
        image_root: Files inside this folder are named from there, others by their whole path; what is no file goes
            into the row.

    Raises:
        SampleError: a text holds the mark that stands for a picture in this format.
    """
    images = [_name(part, image_root) for turn in turns for part in turn.parts if isinstance(part, ImageRef)]
    if format == "openai":
        return {
            "messages": [{"role": turn.role, "content": _parts(turn, image_root), **_flags(turn)} for turn in turns]
        }
    if format in ("llava", "sharegpt"):
        talk = [{"from": _FROM[turn.role], "value": _marked(turn, llava=True), **_flags(turn)} for turn in turns]
        if format == "sharegpt" or not images:
            return {"conversations": talk, **({"images": images} if format == "sharegpt" else {})}
        return {"conversations": talk, "image": images[0] if len(images) == 1 else images}
    messages = [{"role": turn.role, "content": _marked(turn, llava=False), **_flags(turn)} for turn in turns]
    return {"messages": messages, "images": images}


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


def _marked(turn: Turn, *, llava: bool) -> str:
    """The texts of a turn with a mark for each picture.

    LLaVA takes one line break beside pictures that stand first or last for a part of their marks.
    """
    if PLACEHOLDER in turn.text:
        raise SampleError(f"a text holds {PLACEHOLDER} itself, which would be read as a picture")
    pieces = [PLACEHOLDER if isinstance(part, ImageRef) else part for part in turn.parts]
    pictures = [isinstance(part, ImageRef) for part in turn.parts]
    first = pictures.index(False) if False in pictures else 0
    last = len(pieces) - pictures[::-1].index(False) if False in pictures else len(pieces)
    if llava and first:
        pieces[first - 1] += "\n"
    if llava and last < len(pieces):
        pieces[last] = "\n" + pieces[last]
    return "".join(pieces)


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
