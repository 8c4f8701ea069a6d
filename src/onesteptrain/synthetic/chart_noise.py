"""Problems of the charts world, and what can be wrong with their answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onesteptrain.synthetic.chart_drawing import BARS, Chart, Style, draw_style, owner, with_values
from onesteptrain.synthetic.chart_questions import QUESTIONS, Asked, Skill, Solution, calculated, opposite, solve
from onesteptrain.synthetic.files import Span, first_difference

NoiseKind = Literal["stale_image", "wrong_bar", "reversed", "miscalculated", "invented", "looping", "wrong_format"]

NOISE_KINDS: tuple[NoiseKind, ...] = (
    "stale_image",
    "wrong_bar",
    "reversed",
    "miscalculated",
    "invented",
    "looping",
    "wrong_format",
)

GATHERS: dict[NoiseKind, Skill] = {"wrong_bar": "read", "reversed": "largest", "miscalculated": "total"}
"""The skill that a kind gathers at, as a teacher's misunderstandings do."""

FORMATS = ("So we get {}!", "Result: {}", "-> {}")
"""Conclusions that are not the one that was asked for."""


@dataclass(frozen=True)
class Problem:
    """One row before it is written."""

    asked: Asked
    wording: int
    chart: Chart
    """What the picture shows."""

    style: Style
    answer: str
    """What the assistant says."""

    noise: NoiseKind | None = None
    copy_of: int | None = None
    """Place of the row that this one repeats."""

    @property
    def question(self) -> str:
        """What the user asks."""
        return self.asked.worded(self.wording)

    @property
    def right(self) -> Solution:
        """What the assistant should say."""
        return solve(self.asked, self.chart)

    @property
    def error(self) -> Span | None:
        """Where the answer goes wrong."""
        if self.noise is None:
            return None
        if self.noise == "looping":
            said = self.answer.rpartition(". ")[2]
            return Span(self.answer.index(said, self.answer.index(said) + 1), len(self.answer))
        found = first_difference(self.answer, self.right.text)
        return Span(found.start, len(self.answer)) if self.noise == "wrong_format" else found


def allows(problem: Problem, kind: NoiseKind) -> bool:
    """Whether a clean problem can go bad in this way, so that its result is wrong where the kind says so."""
    if kind == "wrong_bar":
        return solve(problem.asked, _beside(problem.chart)).result != problem.right.result
    if kind == "reversed":
        turned = solve(problem.asked, problem.chart, turned=True)
        return opposite(problem.asked.skill) and turned.result != problem.right.result
    return kind != "miscalculated" or calculated(problem.asked.skill)


def invites(problem: Problem, kind: NoiseKind) -> bool:
    """Whether a problem is one that this kind gathers at."""
    return GATHERS.get(kind) == problem.asked.skill


def spoil(problem: Problem, kind: NoiseKind, generator: np.random.Generator) -> Problem:
    """Make a clean problem bad in one way; the chart on record is what its picture shows."""
    if kind == "stale_image":
        return replace(problem, chart=_another(problem, generator), style=draw_style(generator), noise=kind)
    return replace(problem, answer=_spoiled_answer(problem, kind, generator), noise=kind)


def near_copy(problem: Problem, source: int, generator: np.random.Generator) -> Problem:
    """The same chart and question, in another style and perhaps another wording."""
    wording = int(generator.integers(len(QUESTIONS[problem.asked.skill])))
    style = draw_style(generator)._replace(grid=not problem.style.grid)
    return replace(problem, style=style, wording=wording, copy_of=source)


def _spoiled_answer(problem: Problem, kind: NoiseKind, generator: np.random.Generator) -> str:
    right = problem.right
    if kind == "wrong_bar":
        return solve(problem.asked, _beside(problem.chart)).text
    if kind == "reversed":
        return solve(problem.asked, problem.chart, turned=True).text
    if kind == "miscalculated":
        return _miscalculated(problem, generator)
    if kind == "invented":
        return _invented(problem, generator).text
    if kind == "looping":
        said = [right.axis, right.remark, right.reading][: int(generator.integers(2, 4))]
        return " ".join([*said, *[said[-1]] * int(generator.integers(2, 5))])
    form = FORMATS[int(generator.integers(len(FORMATS)))]
    return f"{right.before_result} {form.format(right.result)}"


def _beside(chart: Chart) -> Chart:
    """A chart as it looks to somebody who reads each bar off its neighbour on the right, the last one off the first."""
    return chart._replace(values=(*chart.values[1:], chart.values[0]))


def _miscalculated(problem: Problem, generator: np.random.Generator) -> str:
    """The last number is off by a step of the axis or two; a count stays a count."""
    unit = 1 if problem.asked.skill == "above" else problem.chart.scale
    slips = [slip * unit for slip in (-2, -1, 1, 2) if int(problem.right.result) + slip * unit >= 0]
    return solve(problem.asked, problem.chart, slip=int(generator.choice(slips))).text


def _invented(problem: Problem, generator: np.random.Generator) -> Solution:
    """One sentence is false, and all others are right, the result included."""
    right, chart = problem.right, problem.chart
    if generator.random() < 0.5:
        place = int(generator.integers(len(chart.values)))
        free = [value for value in range(chart.scale, 10 * chart.scale, chart.scale) if value not in chart.values]
        values = [*chart.values]
        values[place] = int(generator.choice(free))
        return right._replace(reading=solve(problem.asked, chart._replace(values=tuple(values))).reading)
    if right.remark.startswith("There are"):
        (other,) = (count for count in BARS if count != len(chart.colours))
        return right._replace(remark=f"There are {other} bars.")
    shown = right.remark.split()[-1]
    others = [colour for colour in chart.colours if f"{colour}." != shown]
    return right._replace(remark=right.remark.replace(shown, f"{generator.choice(others)}."))


def _another(problem: Problem, generator: np.random.Generator) -> Chart:
    """Another chart of the pool with the same colours and axis, in another order and with other values."""
    while True:
        order = generator.permutation(len(problem.chart.colours))
        colours = tuple(problem.chart.colours[place] for place in order)
        found = with_values(generator, problem.chart._replace(colours=colours))
        if owner(found) == "pool" and solve(problem.asked, found).result != problem.right.result:
            return found
