"""What a warm-up is known to have taught: losses of anchors, and of rows that it was on, before and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from onesteptrain.errors import RunError
from onesteptrain.storage.atomic import write_json

LEARNING = "learning.json"
"""In the folder of a warm-up, and beside the scores that its proxy gave."""


class Losses(NamedTuple):
    """Of some samples."""

    tokens: list[int]
    """In the answer of each."""

    before: list[float]
    """Mean loss of each answer before the warm-up, in nats a token."""

    after: list[float]
    """The same after it."""


class LearningRecord(NamedTuple):
    """What was measured before and after a warm-up."""

    rows: int
    """Different rows that the warm-up was on."""

    anchors: Losses

    own: Losses
    """Of some of the rows that the warm-up was on: whether it has taught anything at all."""


def write_learning(record: LearningRecord, folder: Path) -> None:
    """Keep a record in a folder."""
    parts = {name: getattr(record, name)._asdict() for name in ("anchors", "own")}
    write_json(folder / LEARNING, {"rows": record.rows, **parts})


def read_learning_record(folder: Path) -> LearningRecord | None:
    """The record that a folder keeps; None where nothing was measured.

    Raises:
        RunError: it is broken.
    """
    path = folder / LEARNING
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return LearningRecord(int(kept["rows"]), Losses(**kept["anchors"]), Losses(**kept["own"]))
    except (OSError, TypeError, ValueError, KeyError, RecursionError) as error:
        raise RunError(f"{path} is broken ({error}); delete it, or warm up and score again") from error
