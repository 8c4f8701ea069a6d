"""Progress with phase, throughput and time left: a bar for people who watch (terminal, notebook); else lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from onesteptrain.storage.phases import hearing

Progress = Callable[[int, int], None]
"""Told how many are done, and of how many."""

_SECONDS_BETWEEN_LINES = 10.0

_TIMED = 4
"""Pieces of work that a forecast rests on, after the first."""


@contextlib.contextmanager
def progress_bar(what: str, unit: str = "rows") -> Iterator[Progress]:
    """A bar on a terminal's stderr or in a notebook, else a line on stderr every ten seconds.

    Phases that begin before the first report (`begin_phase`) are named at once.
    """
    notebook = "ipykernel" in sys.modules
    if not (notebook or sys.stderr.isatty()):
        with hearing(_say):
            yield _Lines(what, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    meter = _Meter()
    with Progress(*columns, console=Console(stderr=not notebook), transient=True) as bars:
        task = bars.add_task(what, total=None, rate="")

        def advance(done: int, total: int) -> None:
            rate = meter.rate(done, total)
            speed = f"{rate:.1f} {unit}/s" if rate else ""
            bars.update(task, description=what, completed=done, total=total, rate=speed)

        def name_phase(name: str) -> None:
            bars.update(task, description=name, rate="")

        with hearing(name_phase):
            yield advance


def forecasting(progress: Progress, say: Callable[[float], None]) -> Progress:
    """Progress that says once, when a few are done, how many seconds all are going to take."""
    began: list[float] = []

    def report(done: int, total: int) -> None:
        if done == 1:
            began.append(time.monotonic())
        elif done == 1 + _TIMED and began:
            say((time.monotonic() - began[-1]) / _TIMED * total)
        progress(done, total)

    return report


def _say(phase: str) -> None:
    sys.stderr.write(f"{phase}\n")
    sys.stderr.flush()


@dataclass
class _Meter:
    """Throughput since the first report, so that rows that were there already do not count.

    Work in stages counts anew in each of them.
    """

    first: tuple[float, int] = (0.0, 0)
    last: tuple[int, int] | None = None
    """Rows done and in all."""

    def rate(self, done: int, total: int) -> float:
        now = time.monotonic()
        if self.last is None or done < self.last[0] or total != self.last[1]:
            self.first = (now, done)
        self.last = (done, total)
        seconds = now - self.first[0]
        return (done - self.first[1]) / seconds if seconds > 0 else 0.0


@dataclass
class _Lines:
    what: str
    unit: str
    meter: _Meter = field(default_factory=_Meter)
    printed: float = 0.0
    told: tuple[int, int] | None = None
    """The last report; the same once more says nothing new."""

    def __call__(self, done: int, total: int) -> None:
        rate = self.meter.rate(done, total)
        now = time.monotonic()
        again, self.told = self.told == (done, total), (done, total)
        if again or (done < total and now - self.printed < _SECONDS_BETWEEN_LINES):
            return
        self.printed = now
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        speed = f" ({rate:.1f} {self.unit}/s{left})" if rate else ""
        sys.stderr.write(f"{self.what}: {done}/{total}{speed}\n")
