"""Printing: results to stdout, progress to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Progress = Callable[[int, int], None]

_SECONDS_BETWEEN_LINES = 10.0


def say(text: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: for people, or as one JSON object."""
    sys.stdout.write((json.dumps(dict(facts), allow_nan=False) if as_json else text) + "\n")
    sys.stdout.flush()


def moved_images(image_root: Path, out: Path) -> str:
    """A line for people whose rows now stand in another folder than the one that their image paths start from."""
    if image_root.absolute() == out.absolute().parent:
        return ""
    return f"\nrelative image paths in it still start from {image_root}; give that folder as the image root"


@contextlib.contextmanager
def progress_bar(what: str, unit: str = "rows") -> Iterator[Progress]:
    """Progress with throughput and time left on stderr: a bar on a terminal, else a line every ten seconds."""
    if not sys.stderr.isatty():
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None, rate="")

        def advance(done: int, total: int) -> None:
            rate = meter.rate(done, total)
            bars.update(task, completed=done, total=total, rate=f"{rate:.1f} {unit}/s" if rate else "")

        yield advance


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

    def __call__(self, done: int, total: int) -> None:
        rate = self.meter.rate(done, total)
        now = time.monotonic()
        if done < total and now - self.printed < _SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        speed = f" ({rate:.1f} {self.unit}/s{left})" if rate else ""
        sys.stderr.write(f"{self.what}: {done}/{total}{speed}\n")
