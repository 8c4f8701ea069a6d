"""Replies on disk as they come, so that a killed evaluation asks no question twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.generation import Reply


@dataclass(frozen=True)
class Journal:
    """A JSONL file with one line a reply; a line that a kill has cut off does not count."""

    path: Path

    def replies(self) -> dict[int, Reply | str]:
        """What is there, by the question's position: a reply, or the reason why there is none."""
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        rows = [json.loads(line) for line in whole.splitlines()]
        return {
            row["question"]: row["reason"] if row["reason"] is not None else Reply(row["text"], row["finished"])
            for row in rows
        }

    def add(self, replies: Mapping[int, Reply | str]) -> None:
        """Append some replies, and see that they have left this process."""
        lines = [json.dumps(_row(place, reply)) + "\n" for place, reply in replies.items()]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def questions_fingerprint(questions: Sequence[Question]) -> str:
    """SHA-256 of what is asked and what is right; of an image file its path, not its content."""
    digest = hashlib.sha256()
    for question in questions:
        for part in (question.uid, question.answer, *(part for turn in question.turns for part in turn.parts)):
            source = part if isinstance(part, str) else part.source
            content = source if isinstance(source, bytes) else str(source).encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    return f"sha256:{digest.hexdigest()}"


def _row(place: int, reply: Reply | str) -> dict[str, object]:
    if isinstance(reply, str):
        return {"question": place, "text": None, "finished": False, "reason": reply}
    return {"question": place, "text": reply.text, "finished": reply.finished, "reason": None}
