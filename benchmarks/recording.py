"""What the benchmarks have in common: times by turns, and records in results.json."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from onesteptrain.storage.atomic import write_text

RESULTS = Path(__file__).parent / "results.json"


def by_turns(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, done in turn `repeats` times after once to warm up: what disturbs one disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, do in work.items():
            started = time.perf_counter()
            do()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """Median over the turns of one time over another."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[to], strict=True))


def record(benchmark: str, subject: str, *, unit: str, path: Path = RESULTS, **figures: Any) -> None:
    """Write down one figure, in place of an earlier one of the same name, with the command that made it.

    Benchmarks that run at once wait for one another here.
    """
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    with FileLock(f"{path}.lock"):
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        kept = [one for one in kept if (one["benchmark"], one["subject"]) != (benchmark, subject)]
        kept.append({"benchmark": benchmark, "subject": subject, **figures, "unit": unit, "command": command})
        kept.sort(key=lambda one: (one["benchmark"], one["subject"]))
        write_text(path, json.dumps(kept, indent=1) + "\n")
    print(f"{benchmark}: {subject}: {figures} {unit}", flush=True)
