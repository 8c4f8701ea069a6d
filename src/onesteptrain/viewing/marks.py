"""What a person says of rows: good, bad or unsure, kept in the run, and what a random draw of them tells."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.selection.precision import Precision, estimate_precision
from onesteptrain.storage.atomic import write_own

Judgement = Literal["good", "bad", "unsure"]

FILE = "marks.json"
"""In the run directory; it is the person's, so that scoring again does not delete it."""

RIGHT: Mapping[str, Judgement] = {"dropped": "bad", "kept": "good"}
"""The mark that bears each decision out."""

_LONGEST_NOTE = 2000


class Mark(NamedTuple):
    """What was said of a row."""

    mark: Judgement
    note: str


class Marks:
    """The marks of a run by uid; each change is in the file before the next."""

    def __init__(self, run: Path) -> None:
        self.path = run / FILE
        self._lock = threading.Lock()
        self.read()  # a broken file is refused at once

    def read(self) -> dict[str, Mark]:
        """All marks, as the file has them.

        Raises:
            RunError: the file is broken.
        """
        if not self.path.is_file():
            return {}
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))["marks"]
            marks = {str(uid): Mark(_judgement(one["mark"]), str(one["note"])) for uid, one in stored.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(f"{self.path} holds no marks ({error!r}); mend it, or move it away") from error
        return marks

    def put(self, uid: str, mark: str, note: str) -> None:
        """Mark a row, or take its mark away where `mark` is empty.

        Raises:
            ConfigError: there is no such mark.
        """
        with self._lock:
            marks = self.read()  # another window may have marked rows since
            if mark:
                marks[uid] = Mark(_judgement(mark), note[:_LONGEST_NOTE])
            else:
                marks.pop(uid, None)
            stored: dict[str, Any] = {"schema": 1, "marks": {key: one._asdict() for key, one in marks.items()}}
            write_own(self.path, json.dumps(stored, indent=1) + "\n")


def _judgement(text: str) -> Judgement:
    for known in get_args(Judgement):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"mark is {text!r}; give {', '.join(get_args(Judgement))}")


def marked_beginning(draw: Sequence[str], marks: Mapping[str, Mark]) -> Sequence[str]:
    """The rows of a draw up to the first without a mark: which rows are marked must not hang on what they hold."""
    count = next((place for place, uid in enumerate(draw) if uid not in marks), len(draw))
    return draw[:count]


def measure_precision(decision: str, rows: int, draw: Sequence[str], marks: Mapping[str, Mark]) -> Precision:
    """How often a decision is right, by the rows of a draw that are marked.

    Args:
        decision: Dropped or kept.
        rows: Rows on which it was decided so.
        draw: Some of them, in random order.
        marks: By uid.
    """
    counts = Counter(marks[uid].mark for uid in marked_beginning(draw, marks))
    right = counts[RIGHT[decision]]
    return estimate_precision(rows, right, counts.total() - right - counts["unsure"], counts["unsure"])
