"""Read a benchmark: any pool format whose rows also have a column `answer`; an assistant turn is not needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onesteptrain.data.formats.schemas import read_fields, read_turns
from onesteptrain.data.formats.uids import UidCounter, base_uid
from onesteptrain.data.pool import Pool, Turn, open_pool
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

    check: Callable[[str], bool] | None = None
    """Whether a stated answer is right, where the benchmark has a rule of its own; else `same_answer` decides."""


def read_benchmark(path: str | Path, *, image_root: str | Path | None = None) -> list[Question]:
    """Read all questions of a benchmark file.

    A row that ends with an assistant turn is asked without it.

    Raises:
        PoolError: the file cannot be read, is empty, or a row has no answer or no question.
    """
    pool = open_pool(path, image_root=image_root)
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
    fields = read_fields(row)
    answer = str(fields.pop("answer", "")).strip()
    if not answer:
        raise PoolError(f"{where}: the row has no column 'answer' with a text or number; a benchmark needs one")
    try:
        turns = read_turns(_answered(row, answer), pool.format, pool.image_root)
    except SampleError as error:
        raise PoolError(f"{where}: {error}") from error
    return Question(uid, turns[:-1], answer, fields)


def _answered(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """The row with an assistant turn at its end, as the formats ask for one."""
    column = next((name for name in ("messages", "conversations", "prompt") if row.get(name) is not None), None)
    if column is None or column == "prompt":
        return {**row, "completion": row.get("completion") or answer}
    messages = list(row[column])
    last = messages[-1] if messages else {}
    speaker = "from" if "from" in last else "role"
    if last.get(speaker) in ("assistant", "gpt"):
        return dict(row)
    added = {"from": "gpt", "value": answer} if speaker == "from" else {"role": "assistant", "content": answer}
    return {**row, column: [*messages, added]}
