"""The formats: which columns hold a conversation, and how they become turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

from onesteptrain.data.formats.loss_weights import answer_loss
from onesteptrain.data.formats.turns import (
    Draft,
    ImageRef,
    Part,
    Role,
    Turn,
    column_images,
    image_ref,
    put_in_place,
    split_at_placeholders,
)
from onesteptrain.data.formats.uids import id_column, printable
from onesteptrain.errors import SampleError

FormatName = Literal["auto", "llava", "sharegpt", "messages", "openai", "trl"]

COLUMNS: Mapping[FormatName, tuple[tuple[str, ...], ...]] = {
    "llava": (("conversations",),),
    "sharegpt": (("conversations",),),
    "messages": (("messages",),),
    "openai": (("messages",),),
    "trl": (("messages",), ("prompt", "completion")),
}
"""The columns that each format reads as one conversation; the first choice that a row has counts."""

_ROLES: Mapping[object, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_IMAGE_KEYS = ("image", "image_url", "url", "path")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_NOT_FIELDS = {"conversations", "messages", "prompt", "completion", "image", "images", "system", "tools", *_OTHER_MEDIA}


class _Message(NamedTuple):
    """One message as the row holds it."""

    role: object
    content: object
    llava: bool
    """Written with `from` and `value`, where a newline beside an image belongs to the placeholder."""

    whole: Mapping[str, object]
    """All of it, with the flags for the loss."""

    @property
    def parts(self) -> list[object]:
        """The parts of the content, where it is a list."""
        return self.content if isinstance(self.content, list) else []


def detect_format(rows: Iterable[Mapping[str, object]]) -> FormatName | None:
    """The format that fits these rows; None if none does. The most special one wins, as it reads the others too."""
    likely = {_looks_like(row) for row in rows}
    special_first: tuple[FormatName, ...] = ("openai", "trl", "messages", "sharegpt", "llava")
    return next((name for name in special_first if name in likely), None)


def read_turns(row: Mapping[str, object], name: FormatName, image_root: Path) -> tuple[Turn, ...]:
    """The conversation of one row, with its images in place.

    Raises:
        SampleError: the row cannot be trained on as it stands; the text says why, and what to do.
    """
    _refuse_other_media(row)
    messages = _messages(row, name)
    images_are_parts = name == "openai" or any(_is_image(part) for message in messages for part in message.parts)
    drafts = [_draft(number, message, images_are_parts, image_root) for number, message in enumerate(messages, 1)]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and not (drafts and drafts[0][0] == "system"):
        drafts.insert(0, ("system", [system]))
    placed = put_in_place(drafts, column_images(row, image_root))
    turns = tuple(Turn(role, tuple(part for part in parts if part is not None)) for role, parts in placed)
    _check(turns)
    return _with_loss(turns, messages)


def read_fields(row: Mapping[str, object]) -> dict[str, object]:
    """The other columns that hold one plain value; never the id, and never an image."""
    left_out = {*_NOT_FIELDS, id_column(row)}
    fields: dict[str, object] = {}
    for name, value in row.items():
        if name in left_out or (isinstance(value, str) and value.startswith("data:")):
            continue
        if isinstance(value, (str, int, float)):
            fields[name] = printable(value) if isinstance(value, str) else value
    return fields


def _looks_like(row: Mapping[str, object]) -> FormatName | None:
    if isinstance(messages := row.get("messages"), list):
        contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        if any(isinstance(part, Mapping) and part.get("image_url") is not None for part in parts):
            return "openai"
        return "trl" if parts else "messages"
    if isinstance(row.get("conversations"), list):
        return "sharegpt" if row.get("images") is not None or row.get("system") is not None else "llava"
    return "trl" if row.get("prompt") is not None and row.get("completion") is not None else None


def _messages(row: Mapping[str, object], name: FormatName) -> list[_Message]:
    for columns in COLUMNS[name]:
        if all(row.get(column) is not None for column in columns):
            return [message for column in columns for message in _column_messages(column, row[column])]
    needed = " or ".join("+".join(columns) for columns in COLUMNS[name])
    raise SampleError(
        f"no column {needed}, which the format {name} needs; this row has {', '.join(row)}: "
        "mend the row, or name another format"
    )


def _column_messages(column: str, value: object) -> list[_Message]:
    role = {"prompt": "user", "completion": "assistant"}.get(column)
    if isinstance(value, str) and role is not None:
        return [_Message(role, value, False, {})]
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise SampleError(f"{column} is not a list of messages; each needs a role and a content")
    # TRL learns the completion alone: answers in a prompt are context
    return [_message({**message, "loss": False} if column == "prompt" else message) for message in value]


def _message(message: Mapping[str, object]) -> _Message:
    if message.get("tool_calls"):
        raise SampleError("a message has tool_calls, which are not supported; take this row out")
    if message.get("role") is None and message.get("from") is not None:
        return _Message(message["from"], message.get("value"), True, message)
    return _Message(message.get("role"), message.get("content"), False, message)


def _draft(number: int, message: _Message, images_are_parts: bool, image_root: Path) -> Draft:
    role = _ROLES.get(message.role) if isinstance(message.role, str) else None
    if role is None:
        raise SampleError(
            f"message {number} has the role {message.role!r}; only system, user (human) and assistant (gpt) can be "
            "used: mend the role or take this row out"
        )
    pieces = [message.content] if isinstance(message.content, str) else message.parts
    parts: list[Part] = []
    for piece in pieces:
        if _is_image(piece):
            parts.append(_part_image(piece, image_root))
            continue
        text = piece if isinstance(piece, str) else _part_text(number, piece)
        parts += [text] if images_are_parts else split_at_placeholders(text, llava=message.llava)
    return role, parts


def _with_loss(turns: Sequence[Turn], messages: Sequence[_Message]) -> tuple[Turn, ...]:
    """What each answer counts in the loss; before the messages may stand a system turn of its own column."""
    before = len(turns) - len(messages)
    return tuple(
        dataclasses.replace(turn, **answer_loss(number, messages[number - 1].whole, turn.text)._asdict())
        if turn.role == "assistant"
        else turn
        for number, turn in enumerate(turns, 1 - before)
    )


def _part_text(number: int, part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise SampleError(f"message {number} has a part of the type {kind!r}; only text, image and image_url can be used")


def _part_image(part: Mapping[str, object], image_root: Path) -> ImageRef | None:
    """The image that stands in a part; None if it is the next one of the image column."""
    value = next((part[key] for key in _IMAGE_KEYS if part.get(key) is not None), None)
    return None if value is None else image_ref(value, image_root)


def _is_image(part: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def _refuse_other_media(row: Mapping[str, object]) -> None:
    for column in _OTHER_MEDIA:
        if row.get(column):
            raise SampleError(f"the column {column} is filled; only texts and images are supported: take this row out")
    if row.get("tools") not in (None, "", "[]", []):
        raise SampleError("the column tools is filled; tool calls are not supported: take this row out")


def _check(turns: Sequence[Turn]) -> None:
    """Refuse a conversation that has no answer to train on, or whose order no chat template takes."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise SampleError("the conversation has no assistant turn; add the answer")
    if "system" in roles[1:]:
        raise SampleError("a system turn stands after other turns; it must be the first")
    if next(role for role in roles if role != "system") != "user":
        raise SampleError("the conversation begins with an answer; it must begin with a user turn")
    if roles[-1] != "assistant":
        raise SampleError("the conversation ends with a question; add the answer or take the last turn out")
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise SampleError(f"turn {number} is an empty answer; write the answer or take this row out")
        if turn.role == "assistant" and any(isinstance(part, ImageRef) for part in turn.parts):
            raise SampleError(f"turn {number} is an answer with an image; only texts can be trained on as answers")
        if printable(turn.text) != turn.text:
            raise SampleError(f"turn {number} has characters that UTF-8 cannot hold; write the row again as UTF-8")
