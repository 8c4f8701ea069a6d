"""Read a benchmark: any pool format whose rows also have a column `answer`; an assistant turn is not needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onesteptrain.data.formats.schemas import read_fields, read_turns, unread_pictures
from onesteptrain.data.formats.uids import UidCounter, base_uid
from onesteptrain.data.pool import ImageRef, Pool, Turn, open_pool
from onesteptrain.errors import PoolError, SampleError


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a benchmark."""

    uid: str
    turns: tuple[Turn, ...]
    """What the model reads: the conversation up to the answer."""

    answer: str
    """The right answer, as short as the row gives it: "8", "3/4", "B"."""

    fields: Mapping[str, object] = field(default_factory=dict)
    """The row's other columns (skill, level, ...)."""

    unread: str = ""
    """Of a question without images, where something stands that looks like one; see `Sample.unread`."""

    check: Callable[[str], bool] | None = None
    """Whether a stated answer is right, where the benchmark has a rule of its own; else `same_answer` decides."""


def read_benchmark(
    path: str | Path,
    *,
    image_root: str | Path | None = None,
    image_column: str | Sequence[str] = (),
    allow_outside: bool = False,
) -> list[Question]:
    """Read all questions of a benchmark file.

    A row that ends with an assistant turn is asked without it. Images are found as `open_pool` finds them.

    Raises:
        PoolError: the file cannot be read, is empty, or a row has no answer or no question.
    """
    pool = open_pool(path, image_root=image_root, image_column=image_column, allow_outside=allow_outside)
    uids = UidCounter()
    questions = [
        _question(pool, raw.where, raw.problem or raw.value, uids.assign(base_uid(raw.value)))
        for raw in pool.container.raw_rows()
    ]
    if not questions:
        raise PoolError(f"benchmark {path} is empty; give a file with at least one question")
    return questions


def questions_fingerprint(questions: Sequence[Question]) -> str:
    """SHA-256 of what is asked and what is right; of an image file its path, not its content."""
    digest = hashlib.sha256()
    for question in questions:
        for part in (question.uid, question.answer, *(part for turn in question.turns for part in turn.parts)):
            source = part if isinstance(part, str) else part.source
            content = source if isinstance(source, bytes) else str(source).encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    return f"sha256:{digest.hexdigest()}"


def _question(pool: Pool, where: str, row: Any, uid: str) -> Question:
    if not isinstance(row, Mapping):
        raise PoolError(f"{where}: the row is no object ({str(row)[:80]}); mend or delete it")
    fields = read_fields(row, pool.reading)
    answer = str(fields.pop("answer", "")).strip()
    if not answer:
        raise PoolError(f"{where}: the row has no column 'answer' with a text or number; a benchmark needs one")
    try:
        turns = read_turns(row, pool.reading, answer=answer)
    except SampleError as error:
        raise PoolError(f"{where}: {error}") from error
    has_image = any(isinstance(part, ImageRef) for turn in turns for part in turn.parts)
    return Question(uid, turns[:-1], answer, fields, "" if has_image else unread_pictures(row, pool.reading))
