"""The outcome of a comparison as a Markdown table and two figures: accuracy against cost, accuracy against share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy.stats import t as student

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation.worth import worth_of_arms
from onesteptrain.reporting.figures import INK, STYLE, need_matplotlib
from onesteptrain.storage.atomic import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE = "table.md"
COST_FIGURE = "accuracy-by-cost.svg"
SHARE_FIGURE = "accuracy-by-share.svg"

Records = Sequence[Mapping[str, Any]]

_COLOURS = (
    "#2b83c4",
    "#d2692c",
    "#3a9a5b",
    "#a14fb0",
    "#c0392b",
    "#7a7a2a",
    "#2a8c93",
    "#8a5a44",
    "#d46aa4",
    "#555b66",
)
_LEVELS = ("untuned", "full", "oracle")
"""Arms that mark a level to compare with, not a way to choose."""


class ArmResult(NamedTuple):
    """One arm under one protocol, over its seeds."""

    method: str
    budget: str
    share: float
    protocol: str
    seeds: int
    rows: float
    """Mean over the seeds, as are the others; NaN where no record has the number."""

    clean_share: float | None
    accuracy: float
    """In per cent."""

    low: float
    """Ends of the 95 % interval of the mean over seeds, by Student's t; NaN for a single seed."""

    high: float
    scoring_seconds: float
    training_seconds: float

    @property
    def total_seconds(self) -> float:
        """Scoring the pool and training once."""
        return self.scoring_seconds + self.training_seconds

    @property
    def name(self) -> str:
        """The arm as people say it."""
        return self.method if self.method in ("untuned", "full") else f"{self.method} {self.budget}"


def summarize_arms(records: Records) -> list[ArmResult]:
    """Records put together arm by arm, in the order in which the arms first appear.

    Args:
        records: One a training, with `method` and `accuracy` in per cent; budget or share, protocol, rows and the other
            numbers where there are some.

    Raises:
        ConfigError: a record lacks its method or accuracy.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for number, record in enumerate(records):
        if record.get("method") is None or not _is_number(record.get("accuracy")):
            raise ConfigError(f"result {number} has no method or no finite accuracy; each needs both")
        share: Any = record.get("share")
        budget = record.get("budget") or (f"{100 * share:g}%" if _is_number(share) else share or "")
        groups.setdefault((record.get("protocol", ""), str(record["method"]), budget), []).append(record)
    return [_summarize(key, members) for key, members in groups.items()]


def _summarize(key: tuple[str, str, str], members: Records) -> ArmResult:
    protocol, method, budget = key
    accuracies = [float(record["accuracy"]) for record in members]
    low, high = mean_interval(accuracies)
    names = ("share", "rows", "clean_share", "scoring_seconds", "training_seconds")
    share, rows, clean, scoring, training = (_mean(members, name) for name in names)
    return ArmResult(
        method=method,
        budget=budget,
        share=share,
        protocol=protocol,
        seeds=len(members),
        rows=rows,
        clean_share=None if math.isnan(clean) else clean,
        accuracy=statistics.mean(accuracies),
        low=low,
        high=high,
        scoring_seconds=scoring,
        training_seconds=training,
    )


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of some values; NaN at both ends for one value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = student.ppf((1 + confidence) / 2, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def comparison_table(records: Records, differences: Iterable[Mapping[str, Any]] = (), *, against: str = "full") -> str:
    """The arms as a Markdown table, one a protocol, and below it whether training was worth it.

    Args:
        records: One an arm, protocol and seed.
        differences: Paired differences of arms to reference arms, in points.
        against: The reference arm whose differences are shown.
    """
    differences = list(differences)
    shown = {
        (difference["protocol"], difference["method"], difference["budget"]): difference
        for difference in differences
        if difference["against"] == against
    }
    arms = summarize_arms(records)
    tables = []
    for protocol in dict.fromkeys(arm.protocol for arm in arms):
        rows = []
        for arm in (arm for arm in arms if arm.protocol == protocol):
            difference = shown.get((protocol, arm.method, arm.budget))
            rows.append(_cells(arm, {f"against {against}, paired": _signed(difference)} if shown else {}))
        table = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
        lines = [f"| {' | '.join(cells)} |" for cells in table]
        what = {"A": "epochs fixed", "B": "steps fixed"}[protocol]
        said = worth_of_arms(differences, protocol)
        below = "\n\n" + "\n\n".join(f"{text[0].upper()}{text[1:]}." for text in said) if said else ""
        tables.append(f"Protocol {protocol} ({what}), accuracy in per cent\n\n" + "\n".join(lines) + below)
    return "\n\n".join(tables)


def _cells(arm: ArmResult, paired: Mapping[str, str]) -> dict[str, str]:
    """One line of the table by the names of its columns."""
    return {
        "arm": arm.name,
        "rows": f"{arm.rows:.0f}",
        "clean rows": "" if arm.clean_share is None else f"{arm.clean_share:.0%}",
        "accuracy": f"{arm.accuracy:.1f}",
        "95 % interval over seeds": "" if math.isnan(arm.low) else f"{arm.low:.1f} to {arm.high:.1f}",
        **paired,
        "scoring, s": f"{arm.scoring_seconds:.1f}",
        "training, s": f"{arm.training_seconds:.1f}",
        "total, s": f"{arm.total_seconds:.1f}",
    }


def _signed(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    return f"{difference['value']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})"


def write_comparison(records: Records, differences: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write the table and the figures into a folder; a figure whose arms are missing is left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    need_matplotlib()
    arms = summarize_arms(records)
    write_text(out / TABLE, comparison_table(records, differences) + "\n")
    written = [out / TABLE]
    if any(arm.method not in _LEVELS for arm in arms):
        written += [_draw(out / COST_FIGURE, arms, _by_cost), _draw(out / SHARE_FIGURE, arms, _by_share)]
    return written


def pareto(arms: Iterable[ArmResult]) -> list[ArmResult]:
    """Arms that no other arm beats in accuracy at the same cost or less, from the cheapest up."""
    best: list[ArmResult] = []
    for arm in sorted(arms, key=lambda arm: (arm.total_seconds, -arm.accuracy)):
        if not best or arm.accuracy > best[-1].accuracy:
            best.append(arm)
    return best


def _by_cost(axes: Axes, arms: Sequence[ArmResult]) -> None:
    """Total seconds against accuracy: arms, their intervals, and the line of those that none beats."""
    from matplotlib.ticker import LogLocator, NullLocator

    colours = _colours(arms)
    choices = [arm for arm in arms if arm.method not in ("untuned", "oracle")]
    for method in dict.fromkeys(arm.method for arm in choices):
        mine = [arm for arm in choices if arm.method == method]
        costs = [arm.total_seconds for arm in mine]
        _dots(axes, mine, costs, colours.get(method, INK), fmt="o", label=method)
        for arm in mine if method in colours else ():
            place = (arm.total_seconds, arm.accuracy)
            text = axes.annotate(arm.budget, place, (5, 3), textcoords="offset points", fontsize=7.5)
            text.set_in_layout(False)
    front = pareto(choices)
    axes.plot([arm.total_seconds for arm in front], [arm.accuracy for arm in front], color=INK, alpha=0.35, linewidth=1)
    _levels(axes, arms, ("untuned",))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.12)
    axes.set(xlabel="scoring and training once, s", ylabel="accuracy, %", ylim=_range(arms))
    axes.legend(fontsize=7.5, frameon=False, ncols=2)


def _by_share(axes: Axes, arms: Sequence[ArmResult]) -> None:
    """Share against accuracy: one line a method, and the levels to compare with."""
    for method, colour in _colours(arms).items():
        mine = sorted((arm for arm in arms if arm.method == method), key=lambda arm: arm.share)
        _dots(axes, mine, [100 * arm.share for arm in mine], colour, fmt="o-", label=method)
    _levels(axes, arms, _LEVELS)
    axes.legend(fontsize=7.5, frameon=False, ncols=2)
    axes.set(xlabel="rows kept, % of the pool", ylabel="accuracy, %", xlim=(0, 105), ylim=_range(arms))


def _dots(axes: Axes, arms: Sequence[ArmResult], places: Sequence[float], colour: str, *, fmt: str, label: str) -> None:
    """Accuracies with their intervals; a single seed has none."""
    errors = [0.0 if math.isnan(arm.low) else arm.high - arm.accuracy for arm in arms]
    heights = [arm.accuracy for arm in arms]
    axes.errorbar(places, heights, errors, fmt=fmt, color=colour, markersize=4.5, elinewidth=0.8, label=label)


def _range(arms: Sequence[ArmResult]) -> tuple[float, float]:
    """All means with room around them; an interval that is wider than all of that runs out of the picture."""
    accuracies = [arm.accuracy for arm in arms]
    room = 0.25 * (max(accuracies) - min(accuracies)) + 2
    return max(0.0, min(accuracies) - room), min(100.0, max(accuracies) + room)


def _levels(axes: Axes, arms: Sequence[ArmResult], methods: Sequence[str]) -> None:
    """Dashed lines at the accuracy of arms to compare with, of several the best; near ones keep their names apart."""
    for method in methods:
        mine = [arm.accuracy for arm in arms if arm.method == method]
        if mine:
            level, right = max(mine), 0.8 if method == "full" else 1.0
            axes.axhline(level, color=INK, alpha=0.45, linewidth=0.8, dashes=(4, 3))
            style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 7.5, "alpha": 0.8}
            axes.text(right, level, method, transform=axes.get_yaxis_transform(), **style)


def _colours(arms: Sequence[ArmResult]) -> dict[str, str]:
    methods = dict.fromkeys(arm.method for arm in arms if arm.method not in _LEVELS)
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(methods)}


def _draw(path: Path, arms: Sequence[ArmResult], draw: Any) -> Path:
    """One figure with a panel a protocol."""
    import matplotlib
    from matplotlib.figure import Figure

    protocols = list(dict.fromkeys(arm.protocol for arm in arms))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4 * len(protocols), 4.2), layout="constrained")
        for axes, protocol in zip(figure.subplots(1, len(protocols), squeeze=False)[0], protocols, strict=True):
            draw(axes, [arm for arm in arms if arm.protocol == protocol])
            axes.set_title(f"Protocol {protocol}", fontsize=9.5)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _mean(members: Records, name: str) -> float:
    """Mean of the numbers of this name; NaN where there are none."""
    numbers = [float(record[name]) for record in members if _is_number(record.get(name))]
    return statistics.mean(numbers) if numbers else math.nan


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
