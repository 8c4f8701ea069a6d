"""The charts data: questions about small bar charts, each answered sentence by sentence.

Pool, held-out rows and benchmark share no chart. The data differ from the digits in what has to be seen, in longer
answers, and in what goes wrong with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from onesteptrain.synthetic.chart_drawing import (
    BARS,
    STEPS,
    Chart,
    Colour,
    Style,
    draw_chart,
    draw_style,
    owner,
    paint,
    with_values,
)
from onesteptrain.synthetic.problem import Part, Problem, Solution, Span

Skill = Literal["read", "gap", "total", "largest", "above"]

SKILLS: tuple[Skill, ...] = ("read", "gap", "total", "largest", "above")

QUESTIONS: dict[Skill, tuple[str, ...]] = {
    "read": ("What is the value of the {0} bar?", "How high is the {0} bar?", "Read off the value of {0}."),
    "gap": ("How much higher is {0} than {1}?", "By how much does {0} exceed {1}?", "What is {0} minus {1}?"),
    "total": ("What is the total of all bars?", "Add up all the bars.", "What do the bars add up to?"),
    "largest": ("Which bar is the highest?", "What colour is the tallest bar?", "Which colour has the largest value?"),
    "above": ("How many bars are higher than {0}?", "Count the bars above {0}.", "How many values exceed {0}?"),
}

GATHERS: dict[str, Skill] = {"wrong_bar": "read", "reversed": "largest", "miscalculated": "total"}
"""The skill that a kind gathers at, as a teacher's misunderstandings do."""

FORMATS = ("So we get {}!", "Result: {}", "-> {}")
"""Conclusions that are not the one that was asked for."""

OPPOSITE = ("gap", "largest", "above")
"""Skills whose questions have an opposite."""

CALCULATED = ("gap", "total", "above")
"""Skills whose answers are worked out from what is read."""


class Asked(NamedTuple):
    """A question without its wording."""

    skill: Skill
    colours: tuple[Colour, ...] = ()
    """Bars that it names."""

    limit: int = 0
    """Number that it names."""


@dataclass(frozen=True)
class ChartProblem(Problem):
    """A question about three or four bars; every skill is asked for as often."""

    asked: Asked
    chart: Chart
    """What the picture shows."""

    style: Style

    noise_kinds: ClassVar = (
        *("stale_image", "wrong_bar", "reversed", "miscalculated"),
        *("invented", "looping", "wrong_format"),
    )

    @classmethod
    def draw(cls, part: Part, generator: np.random.Generator) -> Self:
        """Draw a clean problem, with a chart that a part owns."""
        chart = draw_chart(generator, part)
        asked = _ask(SKILLS[generator.integers(len(SKILLS))], chart, generator)
        wording = int(generator.integers(len(QUESTIONS[asked.skill])))
        return cls(asked, chart, draw_style(generator), wording=wording, answer=solve(asked, chart).text)

    @property
    def facts(self) -> dict[str, Any]:
        """The skill, and the number of bars."""
        return {"skill": self.asked.skill, "level": len(self.chart.colours)}

    @property
    def question(self) -> str:
        """What the user asks."""
        return QUESTIONS[self.asked.skill][self.wording].format(*(self.asked.colours or (self.asked.limit,)))

    @property
    def right(self) -> Solution:
        """What the assistant should say."""
        return solve(self.asked, self.chart)

    @property
    def error(self) -> Span | None:
        """Where the answer goes wrong; a loop from its first repetition, and a wrong format, to the end."""
        if self.noise == "looping":
            said = self.answer.rpartition(". ")[2]
            return Span(self.answer.index(said, self.answer.index(said) + 1), len(self.answer))
        error = super().error
        return error._replace(end=len(self.answer)) if error and self.noise == "wrong_format" else error

    def picture(self, part: Part) -> bytes:
        """Draw the chart as a PNG of 48 x 48 pixels."""
        return paint(self.chart, self.style)

    def spoil(self, kind: str, generator: np.random.Generator) -> Self:
        """Make a clean problem bad in one way; the chart on record is what its picture shows."""
        if kind == "stale_image":
            return replace(self, chart=_another(self, generator), style=draw_style(generator), noise=kind)
        return replace(self, answer=_spoiled_answer(self, kind, generator), noise=kind)

    def repeat(self, place: int, generator: np.random.Generator) -> Self:
        """The same chart and question, in another style and perhaps another wording."""
        wording = int(generator.integers(len(QUESTIONS[self.asked.skill])))
        style = draw_style(generator)._replace(grid=not self.style.grid)
        return replace(self, style=style, wording=wording, copy_of=place)

    def allows(self, kind: str) -> bool:
        """Whether the problem can go bad in this way, so that its result is wrong where the kind says so."""
        if kind == "wrong_bar":
            return solve(self.asked, _beside(self.chart)).result != self.right.result
        if kind == "reversed":
            turned = solve(self.asked, self.chart, turned=True)
            return self.asked.skill in OPPOSITE and turned.result != self.right.result
        return kind != "miscalculated" or self.asked.skill in CALCULATED

    def invites(self, kind: str) -> bool:
        """Whether the kind gathers at the skill."""
        return GATHERS.get(kind) == self.asked.skill


def solve(asked: Asked, chart: Chart, *, slip: int = 0, turned: bool = False) -> Solution:
    """Work out a question: the axis, a remark, all bars (terse, as every token costs time), a working, and the result.

    Args:
        asked: The question.
        chart: What the picture shows, or is taken to show.
        slip: Added to the last number that is worked out: an arithmetic slip.
        turned: Answer the opposite: the smallest for the largest, below for above, b - a for a - b.
    """
    pairs = [f"{colour}{value}" for colour, value in zip(chart.colours, chart.values, strict=True)]
    working, result = _WORKINGS[asked.skill](asked, chart, slip, turned)
    axis, reading = f"The axis goes to {STEPS * chart.scale}.", f"Bars: {', '.join(pairs)}."
    return Solution((axis, remark(asked.skill, chart), reading, working), result)


def remark(skill: Skill, chart: Chart) -> str:
    """A true sentence that the result does not rest on; each skill has its own."""
    if skill in ("read", "above"):
        return f"There are {len(chart.colours)} bars."
    return f"The first bar is {chart.colours[0]}." if skill == "gap" else f"The last bar is {chart.colours[-1]}."


def _spoiled_answer(problem: ChartProblem, kind: str, generator: np.random.Generator) -> str:
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
        said = right.chain[: int(generator.integers(2, 4))]
        return " ".join([*said, *[said[-1]] * int(generator.integers(2, 5))])
    form = FORMATS[int(generator.integers(len(FORMATS)))]
    return " ".join([*right.chain, form.format(right.result)])


def _beside(chart: Chart) -> Chart:
    """A chart as it looks to somebody who reads each bar off its neighbour on the right, the last one off the first."""
    return chart._replace(values=(*chart.values[1:], chart.values[0]))


def _miscalculated(problem: ChartProblem, generator: np.random.Generator) -> str:
    """The last number is off by a step of the axis or two; a count stays a count."""
    unit = 1 if problem.asked.skill == "above" else problem.chart.scale
    slips = [slip * unit for slip in (-2, -1, 1, 2) if int(problem.right.result) + slip * unit >= 0]
    return solve(problem.asked, problem.chart, slip=int(generator.choice(slips))).text


def _invented(problem: ChartProblem, generator: np.random.Generator) -> Solution:
    """One sentence is false, and all others are right, the result included."""
    right, chart = problem.right, problem.chart
    axis, said, reading, working = right.chain
    if generator.random() < 0.5:
        place = int(generator.integers(len(chart.values)))
        free = [value for value in range(chart.scale, 10 * chart.scale, chart.scale) if value not in chart.values]
        values = [*chart.values]
        values[place] = int(generator.choice(free))
        reading = solve(problem.asked, chart._replace(values=tuple(values))).chain[2]
    elif said.startswith("There are"):
        (other,) = (count for count in BARS if count != len(chart.colours))
        said = f"There are {other} bars."
    else:
        shown = said.split()[-1]
        others = [colour for colour in chart.colours if f"{colour}." != shown]
        said = said.replace(shown, f"{generator.choice(others)}.")
    return right._replace(chain=(axis, said, reading, working))


def _another(problem: ChartProblem, generator: np.random.Generator) -> Chart:
    """Another chart of the pool with the same colours and axis, in another order and with other values."""
    while True:
        order = generator.permutation(len(problem.chart.colours))
        colours = tuple(problem.chart.colours[place] for place in order)
        other = with_values(generator, problem.chart._replace(colours=colours))
        if owner(other) == "pool" and solve(problem.asked, other).result != problem.right.result:
            return other


def _ask(skill: Skill, chart: Chart, generator: np.random.Generator) -> Asked:
    """Choose what to ask about a chart: a gap is asked of the higher bar, and no bar ends at the limit."""
    first, second = (int(place) for place in generator.permutation(len(chart.colours))[:2])
    if skill == "read":
        return Asked(skill, (chart.colours[first],))
    if skill == "gap":
        high, low = sorted((first, second), key=lambda place: -chart.values[place])
        return Asked(skill, (chart.colours[high], chart.colours[low]))
    if skill == "above":
        free = [step * chart.scale for step in range(2, 9) if step * chart.scale not in chart.values]
        return Asked(skill, limit=int(generator.choice(free)))
    return Asked(skill)


_Working = tuple[str, str]


def _read(asked: Asked, chart: Chart, slip: int, turned: bool) -> _Working:
    value = chart.values[chart.colours.index(asked.colours[0])] + slip
    return f"Asked: {asked.colours[0]}{value}.", str(value)


def _gap(asked: Asked, chart: Chart, slip: int, turned: bool) -> _Working:
    first, second = (chart.values[chart.colours.index(colour)] for colour in asked.colours)
    left, right = (second, first) if turned else (first, second)
    result = left - right + slip
    return f"Asked: {asked.colours[0]}{first}, {asked.colours[1]}{second}. {left}-{right}={result}.", str(result)


def _total(asked: Asked, chart: Chart, slip: int, turned: bool) -> _Working:
    steps = []
    total = chart.values[0]
    for place, value in enumerate(chart.values[1:], start=2):
        after = total + value + (slip if place == len(chart.values) else 0)
        steps.append(f"{total}+{value}={after}")
        total = after
    return ", ".join(steps) + ".", str(total)


def _largest(asked: Asked, chart: Chart, slip: int, turned: bool) -> _Working:
    extreme = min(chart.values) if turned else max(chart.values)
    colour = chart.colours[chart.values.index(extreme)]
    return f"The {'lowest' if turned else 'highest'} is {colour}.", colour


def _above(asked: Asked, chart: Chart, slip: int, turned: bool) -> _Working:
    named = [
        colour
        for colour, value in zip(chart.colours, chart.values, strict=True)
        if (value < asked.limit if turned else value > asked.limit)
    ]
    side = "Below" if turned else "Above"
    return f"{side} {asked.limit}: {', '.join(named) or 'none'}.", str(len(named) + slip)


_WORKINGS: dict[Skill, Callable[[Asked, Chart, int, bool], _Working]] = {
    "read": _read,
    "gap": _gap,
    "total": _total,
    "largest": _largest,
    "above": _above,
}
