"""Judge the trust gate on every setting that run.py has scored: a table of what it does and says, and the criteria.

judge.py WORK [--only digits-own a100 ...] scores nothing. Each pool is judged whole and by halves, with all options at
their defaults; the planted labels are the truth.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onesteptrain.selection.gating import pass_gate
from onesteptrain.selection.options import SelectOptions
from onesteptrain.selection.power import Interval
from onesteptrain.storage.score_table import CORRUPTED, REFERENCE, SCORES, ScoreTable, write_table

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
sys.path.insert(0, str(Path(__file__).parent))
from separating import auroc
from settings import clean_rows, named

SIGNALS = {"score": -1, "harm": -1, "loss": 1, "worst_loss": 1}
"""What might be gone by alone, and the sign that makes more of it worse."""

Bools = NDArray[np.bool_]


class Judged(NamedTuple):
    """What the gate did and said, and what is true; NaN where nothing of the kind is there or said."""

    name: str
    part: str
    """Of the pool: all of it, or a half."""

    blind: bool
    order: float
    """Area under the ROC curve of nonconformity for bad rows."""

    best: float
    """The same of the best single signal."""

    signal: str
    clean_pass: float
    bad_pass: float
    clean: float
    said: Interval | None
    kept_clean: float
    """Clean share of the rows that pass."""

    kept_said: Interval | None
    power: float
    """Share of corrupted anchors that the gate drops, as it says."""

    power_alike: float
    """The same of a cut that drops 5 % of the anchors."""

    @property
    def regret(self) -> float:
        """What is lost against the best single signal."""
        return self.best - self.order


def judge(name: str, part: str, table: ScoreTable, clean: Bools) -> Judged:
    """Compare what the gate does and says with the planted labels."""
    gated = pass_gate(table, SelectOptions())
    trust = gated.trust
    assert trust is not None, f"{table.path} has no trust gate"  # noqa: S101
    passing = np.zeros(len(clean), bool)
    passing[gated.passed] = True
    verdict = trust.verdict
    areas = {signal: _area(sign * table.numbers(signal), clean) for signal, sign in SIGNALS.items()}
    best = max(areas, key=lambda signal: areas[signal])
    power = verdict.power
    return Judged(
        name,
        part,
        gated.gate == "blind",
        _area(trust.nonconformity, clean),
        areas[best],
        best if clean.any() and not clean.all() else "",
        _mean(passing[clean]),
        _mean(passing[~clean]),
        float(clean.mean()),
        verdict.clean,
        _mean(clean[passing]),
        verdict.passing_clean,
        power.at_cut if power else math.nan,
        power.at_false_alarms if power else math.nan,
    )


def parts(folder: Path, clean: Bools, scratch: Path) -> Iterator[tuple[str, ScoreTable, Bools]]:
    """The scores of a whole pool and of its halves, with their truth. Rows are in the order of random ids."""
    table = ScoreTable(folder / SCORES)
    yield "whole", table, clean
    middle = len(clean) // 2
    for name, start, end in (("half 1", 0, middle), ("half 2", middle, len(clean))):
        out = scratch / name
        out.mkdir(exist_ok=True)
        rows = table.read().slice(start, end - start)
        rows = rows.set_column(rows.column_names.index("row"), "row", pa.array(range(end - start), pa.int64()))
        write_table(rows, out / SCORES)
        for anchors in (REFERENCE, CORRUPTED):
            shutil.copy(folder / anchors, out)
        yield name, ScoreTable(out / SCORES), clean[start:end]


def lines(judged: Sequence[Judged]) -> Iterator[str]:
    """The table, in Markdown."""
    titles = (
        "setting",
        "pool",
        "order",
        "best signal",
        "regret",
        "clean rows that pass",
        "bad rows that pass",
        "clean, said",
        "true",
        "clean of what passes, said",
        "true",
        "power at the cut",
        "at 5 % false alarms",
    )
    yield f"| {' | '.join(titles)} |"
    yield "| --- " * len(titles) + "|"
    for one in judged:
        cells = (
            one.name,
            one.part,
            _number(one.order, 3) + (" (blind)" if one.blind else ""),
            f"{_number(one.best, 3)} {one.signal}".strip(),
            _number(one.regret, 3),
            _percent(one.clean_pass),
            _percent(one.bad_pass),
            _said(one.said),
            _percent(one.clean),
            _said(one.kept_said),
            _percent(one.kept_clean),
            _percent(one.power),
            _percent(one.power_alike),
        )
        yield f"| {' | '.join(cells)} |"


def criteria(judged: Sequence[Judged]) -> Iterator[str]:
    """How many settings meet each aim, and the one that is furthest off."""
    noisy = [one for one in judged if not math.isnan(one.order)]
    seeing = [one for one in noisy if not one.blind]
    yield _met("order at most .01 below the best signal (aim: 90 %)", noisy, lambda one: one.regret, 0.01)
    yield _met("the same where the gate is not blind", seeing, lambda one: one.regret, 0.01)
    yield _met("order at most .03 below it (aim: all)", noisy, lambda one: one.regret, 0.03)
    for what, power in (("at the cut", "power"), ("at 5 % false alarms", "power_alike")):
        able = [one for one in judged if getattr(one, power) >= 0.8]
        yield _met(f"at most 10 % of clean rows lost where power {what} is 80 %", able, _lost, 0.1)
    yield _met("at most 2 % of a clean pool lost", [one for one in judged if one.clean == 1], _lost, 0.02)
    told = [one for one in judged if one.said is not None]
    yield _met("clean share within its interval", told, lambda one: _outside(one.clean, one.said), 0)
    kept = [one for one in judged if one.kept_said is not None]
    yield _met("the same of what passes", kept, lambda one: _outside(one.kept_clean, one.kept_said), 0)
    yield _met(
        "power within 10 points of the bad rows dropped", seeing, lambda one: abs(1 - one.bad_pass - one.power), 0.1
    )


def _met(aim: str, judged: Sequence[Judged], off: Callable[[Judged], float], limit: float) -> str:
    if not judged:
        return f"- {aim}: no such setting"
    worst = max(judged, key=off)
    met = sum(off(one) <= limit for one in judged)
    return (
        f"- {aim}: {met} of {len(judged)} ({met / len(judged):.0%}); most {off(worst):.3f}, {worst.name}, {worst.part}"
    )


def _lost(one: Judged) -> float:
    return 1 - one.clean_pass


def _outside(value: float, said: Interval | None) -> float:
    """How far a value is outside an interval."""
    return 0.0 if said is None else max(0.0, said.low - value, value - said.high)


def _area(badness: NDArray[np.float64], clean: Bools) -> float:
    """Area under the ROC curve for bad rows, of those that have a value."""
    known = np.isfinite(badness)
    bad, good = badness[known & ~clean], badness[known & clean]
    return auroc(bad, good) if len(bad) and len(good) else math.nan


def _mean(values: Bools) -> float:
    return float(values.mean()) if len(values) else math.nan


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %"


def _said(interval: Interval | None) -> str:
    return "nothing" if interval is None else f"{interval.value:.0%}{interval.reach()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    stored = sorted(path.parent for path in (asked.work / "runs").glob(f"*/score/{SCORES}"))
    judged = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in stored:
            name = folder.parent.name
            if all(part in name for part in asked.only):
                clean = clean_rows(asked.work / "data" / named(name).data)
                judged += [judge(name, *part) for part in parts(folder, clean, Path(scratch))]
    whole = [one for one in judged if one.part == "whole"]
    print("\n".join(lines(judged)))
    for title, group in (("Whole pools", whole), ("Whole and half pools", judged)):
        print(f"\n{title}:\n")
        print("\n".join(criteria(group)))


if __name__ == "__main__":
    main()
