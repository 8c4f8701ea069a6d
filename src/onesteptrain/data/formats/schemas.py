"""The conversation of a row, read by its own shape: which columns hold it, and how messages become turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from onesteptrain.data.formats.loss_weights import AnswerLoss, answer_loss
from onesteptrain.data.formats.pictures import IMAGE_COLUMNS, image_ref, look_alikes, names_image, pictures_of
from onesteptrain.data.formats.places import PLACEHOLDER, Draft, Part, may_name_picture, placed
from onesteptrain.data.formats.turns import ImageRef, Role, Turn
from onesteptrain.data.formats.uids import id_column, storable
from onesteptrain.errors import SampleError

FormatName = Literal["auto", "llava", "sharegpt", "messages", "openai", "trl"]

COLUMNS: Mapping[FormatName, tuple[tuple[str, ...], ...]] = {
    "auto": (("messages",), ("conversations",), ("prompt", "completion"), ("question", "answer")),
    "llava": (("conversations",),),
    "sharegpt": (("conversations",),),
    "messages": (("messages",),),
    "openai": (("messages",),),
    "trl": (("messages",), ("prompt", "completion")),
}
"""The columns that each format reads as one conversation; the first choice that a row has filled counts."""

THE_TEXT = "the text"
"""Where a row names a picture that is in no column."""

_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ROLE_OF: Mapping[str, Role] = {
    **dict.fromkeys(("prompt", "question"), "user"),
    **dict.fromkeys(("completion", "answer"), "assistant"),
}
"""Columns that may hold one text, and who says it."""

_CONTENT_KEYS = ("content", "value", "text")
_TEXT_KEYS = ("text", "content", "value")
_TEXT_TYPES = (None, "text", "input_text", "output_text")
_IMAGE_TYPES = ("image", "image_url", "input_image", "image_path", "img")
_PARTS = "a part is a text or one image, of the type text, image or image_url: mend it or take this row out"
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_UNSUPPORTED = {*_OTHER_MEDIA, "tools", "tool_calls"}
_NOT_FIELDS = {"conversations", "messages", "prompt", "completion", "system", "tools", *IMAGE_COLUMNS, *_OTHER_MEDIA}


class PictureReading(TypedDict):
    """How pictures are found, whatever the file."""

    image_column: tuple[str, ...]
    allow_outside: bool


class Reading(NamedTuple):
    """How the rows of a pool are read."""

    format: FormatName = "auto"
    """Which columns hold the conversation."""

    image_root: Path = Path()
    """The folder that relative image paths start from."""

    image_column: tuple[str, ...] = ()
    """Columns that hold pictures, in this order; rows that have none filled are read by `images` or `image`."""

    allow_outside: bool = False
    """Open pictures outside of `image_root` too."""

    def for_others(self) -> PictureReading:
        """What holds of anchors and benchmarks of a pool as well."""
        return {"image_column": self.image_column, "allow_outside": self.allow_outside}


def has_conversation(row: Mapping[str, object]) -> bool:
    """Whether a row has the columns of any format."""
    return any(all(row.get(column) is not None for column in columns) for columns in COLUMNS["auto"])


def read_turns(row: Mapping[str, object], reading: Reading, *, answer: str | None = None) -> tuple[Turn, ...]:
    """The conversation of one row, with its images in place.

    Args:
        row: The raw row.
        reading: How it is read.
        answer: What the assistant says where the row ends with a question.

    Raises:
        SampleError: the row cannot be trained on as it stands; the text says why, and what to do.
    """
    _refuse_other_media(row)
    if answer is not None and not has_conversation(row):
        row = {**row, "completion": answer}
    drafts = [_draft(number, message, reading) for number, message in enumerate(_messages(row, reading.format), 1)]
    if answer is not None and not (drafts and drafts[-1].role == "assistant"):
        drafts.append(Draft("assistant", [answer]))
    system = row.get("system")
    if _is_said(system) and not (drafts and drafts[0].role == "system"):
        drafts.insert(0, _draft(0, {"role": "system", "content": system}, reading))
    images = pictures_of(row, reading.image_column, reading.image_root)
    try:
        parts = placed(drafts, images, reading.image_root)
    except SampleError as error:
        unread = "" if images else unread_pictures(row, reading)
        hint = f"; or read {unread} with --image-column" if unread not in ("", THE_TEXT) else ""
        raise SampleError(f"{error}{hint}") from error
    if reading.allow_outside:
        parts = [[_anywhere(part) for part in of_turn] for of_turn in parts]
    turns = tuple(Turn(draft.role, tuple(of_turn), *draft.loss) for draft, of_turn in zip(drafts, parts, strict=True))
    _check(turns)
    return turns


def unread_pictures(row: Mapping[str, object], reading: Reading) -> str:
    """Where a row without images has something that looks like one: "column image_path"; else nothing."""
    messages = _messages(row, reading.format)
    names = look_alikes(row, messages, {*_NOT_FIELDS, *reading.image_column, id_column(row) or ""})
    if names:
        return f"column{'s' if len(names) > 1 else ''} {', '.join(map(storable, names))}"
    asked = [message for message in messages if message.get("role", message.get("from")) not in ("assistant", "gpt")]
    texts = [message.get(key) for message in asked for key in _CONTENT_KEYS]
    return THE_TEXT if may_name_picture([text for text in texts if isinstance(text, str)]) else ""


def read_fields(row: Mapping[str, object], reading: Reading) -> dict[str, object]:
    """The other columns that hold one plain value; never the id, and never an image."""
    own_id = id_column(row)
    fields: dict[str, object] = {}
    for name, value in row.items():
        if name in _NOT_FIELDS or name == own_id or name in reading.image_column:
            continue
        if isinstance(value, str) and value.startswith("data:"):
            continue
        if isinstance(value, (str, int, float)):
            fields[storable(name)] = storable(value) if isinstance(value, str) else value
    return fields


def _messages(row: Mapping[str, object], name: FormatName) -> list[Mapping[str, object]]:
    choices = COLUMNS[name]
    filled = next((columns for columns in choices if all(map(row.get, columns))), None)
    # columns that are there and empty say themselves what is wrong with them
    columns = filled or next((there for there in choices if all(row.get(column) is not None for column in there)), None)
    if columns is not None:
        return [message for column in columns for message in _column_messages(column, row[column])]
    needed = " or ".join("+".join(columns) for columns in choices)
    which = "" if name == "auto" else f", which the format {name} needs"
    raise SampleError(f"no column {needed}{which}; this row has {', '.join(row)}: mend the row, or name another format")


def _column_messages(column: str, value: object) -> list[Mapping[str, object]]:
    role = _ROLE_OF.get(column)
    if isinstance(value, str | int) and role is not None:
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise SampleError(f"{column} is not a list of messages; each needs a role and a content")
    # TRL learns the completion alone: answers in a prompt are context
    return [{**message, "loss": False} for message in value] if column == "prompt" else value


def _draft(number: int, message: Mapping[str, object], reading: Reading) -> Draft:
    llava = message.get("role") is None
    said = message.get("from") if llava else message["role"]
    role = (_ROLES.get(said) or _ROLES.get(said.strip().lower())) if isinstance(said, str) else None
    if role is None:
        raise SampleError(
            f"message {number} has the role {said!r}; only system, user (human) and assistant (gpt) can be "
            "used: mend the role or take this row out"
        )
    pieces = _pieces(number, message)
    parts = [_part(number, piece, reading.image_root) for piece in pieces]
    said_nothing = role == "user" and all(isinstance(part, str) and not part.strip() for part in parts)
    if said_nothing or (role == "system" and not pieces):
        raise SampleError(
            f"message {number} is an empty {'question' if role == 'user' else 'system turn'} (it has the keys "
            f"{', '.join(map(str, message))}); write its text under content, or {PLACEHOLDER} if an image is all of it"
        )
    if len(message) == 2:  # no more than a role and a content
        return Draft(role, parts, llava)
    _refuse_other_media(message)
    images = pictures_of(message, reading.image_column, reading.image_root)
    if images:
        parts = [*placed([Draft(role, parts, llava)], images, reading.image_root)[0]]
    text = "".join(part for part in parts if isinstance(part, str))
    if role != "assistant":
        return Draft(role, parts, llava, AnswerLoss())
    loss, thought = answer_loss(number, message, text), message.get("reasoning_content")
    if not isinstance(thought, str) or not thought.strip() or "<think>" in text or loss != AnswerLoss():
        return Draft(role, parts, llava, loss)
    first, *rest = parts if parts and isinstance(parts[0], str) else ["", *parts]
    return Draft(role, [f"<think>\n{thought.strip()}\n</think>\n\n{first}", *rest], llava, loss)


def _is_said(system: object) -> bool:
    """Whether a column `system` holds a text, or parts of which one does; it may hold other things."""
    if isinstance(system, list):
        return any(map(_is_said, system))
    if isinstance(system, Mapping):
        return any(_is_said(system.get(key)) for key in _TEXT_KEYS)
    return isinstance(system, str) and system.strip() != ""


def _pieces(number: int, message: Mapping[str, object]) -> list[object]:
    """What a message says, in parts; nothing where it says nothing."""
    if len(message) == 2 and isinstance(content := message.get("content"), str):  # nearly all messages
        return [content]
    given = [message[key] for key in _CONTENT_KEYS if message.get(key) is not None]
    said = [value for value in given if value not in ("", [], {})] or given  # what is empty says nothing
    if any(other != said[0] for other in said[1:]):
        raise SampleError(f"message {number} says one thing under content and another under value or text; keep one")
    if not said:
        return []
    if isinstance(said[0], int) and not isinstance(said[0], bool):
        return [str(said[0])]
    if isinstance(said[0], float | bool):
        raise SampleError(
            f"message {number} has the content {said[0]!r}, a {type(said[0]).__name__}; write it as a text"
        )
    if not isinstance(said[0], list):
        return said[:1]
    return [part for part in said[0] if part is not None]


def _part(number: int, part: object, image_root: Path) -> Part:
    """A text, an image, or None for the next image of the image column."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise SampleError(f"message {number} has a part of the type {type(part).__name__!r}; {_PARTS}")
    kind, image = part.get("type"), names_image(part)
    text = next((part[key] for key in _TEXT_KEYS if part.get(key) is not None), None)
    if text in (None, "") and (kind in _IMAGE_TYPES or (kind is None and image)):
        return image_ref(part, image_root) if image else None
    if isinstance(text, str) and kind in _TEXT_TYPES and not image:
        return text
    raise SampleError(
        f"message {number} has a part of the type {kind!r} with the keys {', '.join(map(str, part))}; {_PARTS}"
    )


def _anywhere(part: str | ImageRef) -> str | ImageRef:
    return part if isinstance(part, str) else dataclasses.replace(part, root=None)


def _refuse_other_media(holder: Mapping[str, object]) -> None:
    if _UNSUPPORTED.isdisjoint(holder):
        return
    for column in _OTHER_MEDIA:
        if holder.get(column):
            raise SampleError(f"the column {column} is filled; only texts and images are supported: take this row out")
    if holder.get("tool_calls"):
        raise SampleError("a message has tool_calls, which are not supported; take this row out")
    if holder.get("tools") not in (None, "", "[]", []):
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
        text = turn.text
        if turn.role == "assistant" and not text.strip():
            raise SampleError(f"turn {number} is an empty answer; write the answer or take this row out")
        if turn.role == "assistant" and any(isinstance(part, ImageRef) for part in turn.parts):
            raise SampleError(f"turn {number} is an answer with an image; only texts can be trained on as answers")
        if storable(text) != text:
            raise SampleError(f"turn {number} has characters that UTF-8 cannot hold; write the row again as UTF-8")
