"""What is asked about a chart, and the answer sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from onesteptrain.synthetic.chart_drawing import STEPS, Chart, Colour

Skill = Literal["read", "gap", "total", "largest", "above"]

SKILLS: tuple[Skill, ...] = ("read", "gap", "total", "largest", "above")

QUESTIONS: dict[Skill, tuple[str, ...]] = {
    "read": ("What is the value of the {0} bar?", "How high is the {0} bar?", "Read off the value of {0}."),
    "gap": ("How much higher is {0} than {1}?", "By how much does {0} exceed {1}?", "What is {0} minus {1}?"),
    "total": ("What is the total of all bars?", "Add up all the bars.", "What do the bars add up to?"),
    "largest": ("Which bar is the highest?", "What colour is the tallest bar?", "Which colour has the largest value?"),
    "above": ("How many bars are higher than {0}?", "Count the bars above {0}.", "How many values exceed {0}?"),
}


class Asked(NamedTuple):
    """A question without its wording."""

    skill: Skill
    colours: tuple[Colour, ...] = ()
    """Bars that it names."""

    limit: int = 0
    """Number that it names."""

    def worded(self, wording: int) -> str:
        """The question in one of its wordings."""
        return QUESTIONS[self.skill][wording].format(*(self.colours or (self.limit,)))


class Solution(NamedTuple):
    """A worked answer in parts, so that a world can spoil one part and keep the others."""

    axis: str
    """Where the axis ends."""

    remark: str
    """Something else that the picture shows."""

    reading: str
    """All bars with their values; terse, as every token costs time."""

    working: str
    """The step from there to the result."""

    result: str
    """A number or a colour."""

    @property
    def before_result(self) -> str:
        """All sentences but the conclusion."""
        return f"{self.axis} {self.remark} {self.reading} {self.working}"

    @property
    def text(self) -> str:
        """The answer as it stands in the pool."""
        return f"{self.before_result} The answer is {self.result}."


def solve(asked: Asked, chart: Chart, *, slip: int = 0, turned: bool = False) -> Solution:
    """Work out a question.

    Args:
        asked: The question.
        chart: What the picture shows, or is taken to show.
        slip: Added to the last number that is worked out: an arithmetic slip.
        turned: Answer the opposite: the smallest for the largest, below for above, b - a for a - b.
    """
    pairs = [f"{colour}{value}" for colour, value in zip(chart.colours, chart.values, strict=True)]
    working, result = _WORKINGS[asked.skill](asked, chart, slip, turned)
    axis, reading = f"The axis goes to {STEPS * chart.scale}.", f"Bars: {', '.join(pairs)}."
    return Solution(axis, remark(asked.skill, chart), reading, working, result)


def remark(skill: Skill, chart: Chart) -> str:
    """A true sentence that the result does not rest on; each skill has its own."""
    if skill in ("read", "above"):
        return f"There are {len(chart.colours)} bars."
    return f"The first bar is {chart.colours[0]}." if skill == "gap" else f"The last bar is {chart.colours[-1]}."


def opposite(skill: Skill) -> bool:
    """Whether a question of this skill has an opposite."""
    return skill in ("gap", "largest", "above")


def calculated(skill: Skill) -> bool:
    """Whether the answer to a question of this skill is worked out from what is read."""
    return skill in ("gap", "total", "above")


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
    found = [
        colour
        for colour, value in zip(chart.colours, chart.values, strict=True)
        if (value < asked.limit if turned else value > asked.limit)
    ]
    side = "Below" if turned else "Above"
    return f"{side} {asked.limit}: {', '.join(found) or 'none'}.", str(len(found) + slip)


_WORKINGS: dict[Skill, Callable[[Asked, Chart, int, bool], _Working]] = {
    "read": _read,
    "gap": _gap,
    "total": _total,
    "largest": _largest,
    "above": _above,
}
