"""A scorer that other processes can load, and that needs no model."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from onesteptrain.data.pool import Sample, Turn
from onesteptrain.errors import ScoreError
from onesteptrain.methods import Reference
from onesteptrain.storage.score_table import Record


@dataclass(frozen=True)
class Lengths:
    """Scores a sample by the length of its question; may die, fail or be slow at a sample."""

    diary: Path
    """A line for each sample that is scored, with the process that did it."""

    die_at: str = ""
    lives: int = 1
    """How often to die there."""

    fail_at: str = ""
    seconds: float = 0.0
    """Of each sample."""

    def prepare(self) -> Lengths:
        self._note("prepared")
        return self

    def __call__(self, samples):
        return [self._record(sample) for sample in samples]

    def reference(self):
        anchors = [Sample(f"a{row}", row, (Turn("user", ("?" * row,)), Turn("assistant", ("x",)))) for row in (2, 5)]
        return Reference([(anchor, Record(float(anchor.row))) for anchor in anchors], [])

    def facts(self):
        return {"device": "none"}

    def noted(self) -> list[tuple[int, str]]:
        """Who did what."""
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    def _record(self, sample):
        time.sleep(self.seconds)
        if sample.uid == self.fail_at:
            raise ScoreError(f"{sample.uid} is too much")
        if sample.uid == self.die_at and [what for _, what in self.noted()].count("died") < self.lives:
            self._note("died")
            os.kill(os.getpid(), signal.SIGKILL)
        self._note(sample.uid)
        return Record(float(len(sample.turns[0].text)), columns={"tokens": sample.row})

    def _note(self, what: str) -> None:
        with self.diary.open("ab", buffering=0) as diary:  # one write, so that processes do not mix
            diary.write(f"{os.getpid()} {what}\n".encode())
