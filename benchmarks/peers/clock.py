"""Set-up and scoring are timed apart: the rows count from the moment the first of them is touched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from torch.utils.data import Dataset

from onesteptrain.proxy import Encoded


class Moment(NamedTuple):
    """A point in time, in seconds."""

    processor: float
    """Spent by this process, which a busy machine does not lengthen."""

    wall: float


class Clock:
    """Notes when a contender begins, touches its first row and ends."""

    def __init__(self) -> None:
        self.began = _now()
        self.touched: Moment | None = None

    def touch(self) -> None:
        """The set-up is done: a row is about to be scored."""
        self.touched = self.touched or _now()

    def seconds(self) -> dict[str, float]:
        """Set-up and scoring until now."""
        end, touched = _now(), self.touched or self.began
        return {
            "setup": touched.processor - self.began.processor,
            "setup_wall": touched.wall - self.began.wall,
            "scoring": end.processor - touched.processor,
            "scoring_wall": end.wall - touched.wall,
        }


class Rows(Dataset[Encoded]):
    """Encoded samples as the data set that a peer asks for; given a clock, the first access ends the set-up."""

    def __init__(self, samples: Sequence[Encoded], clock: Clock | None = None) -> None:
        self.samples = samples
        self.clock = clock

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded:
        if self.clock:
            self.clock.touch()
        return self.samples[index]


def _now() -> Moment:
    return Moment(time.process_time(), time.perf_counter())
