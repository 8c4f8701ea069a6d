"""The charts world: questions about small bar charts, with planted noise whose labels no method sees.

`onesteptrain.synthetic.files` says what a world consists of. Pool, held-out rows and benchmark share no chart. It
differs from the digits world in what has to be seen, in longer answers, and in what goes wrong with them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from onesteptrain.synthetic.chart_drawing import Chart, Part, draw_chart, draw_style, paint
from onesteptrain.synthetic.chart_noise import NOISE_KINDS, NoiseKind, Problem, allows, invites, near_copy, spoil
from onesteptrain.synthetic.chart_questions import QUESTIONS, SKILLS, Asked, Skill, solve
from onesteptrain.synthetic.files import FILES, Row, World, refuse_existing, sources, write_world
from onesteptrain.synthetic.planting import Craft, PlantingOptions, clean_rows, plant

__all__ = ["NOISE_KINDS", "ChartOptions", "NoiseKind", "Problem", "World", "make_charts", "problems"]


@dataclass(frozen=True)
class ChartOptions(PlantingOptions):
    """What charts world to make."""

    noise_kinds: tuple[NoiseKind, ...] = NOISE_KINDS
    """What can be wrong with a row."""

    known_kinds: ClassVar[tuple[str, ...]] = NOISE_KINDS


def make_charts(options: ChartOptions, folder: Path) -> World:
    """Make a world in a new folder, which appears whole or not at all.

    Raises:
        RunError: the folder exists.
        ConfigError: there are not enough rows that can go bad in the ways asked for.
        MissingExtraError: matplotlib is not installed.
    """
    refuse_existing(folder)
    chance = sources(options.seed)
    rows = {
        "pool": noisy_problems(options, chance["pool"]),
        "heldout": problems(options.heldout_rows, "heldout", chance["heldout"]),
        "benchmark": problems(options.benchmark_rows, "benchmark", chance["benchmark"]),
    }
    return write_world(folder, {name: [_row(one) for one in rows[name]] for name in FILES}, options.seed)


def problems(count: int, part: Part, generator: np.random.Generator) -> list[Problem]:
    """Draw clean problems: every skill as often, three or four bars."""
    drawn = []
    for _ in range(count):
        chart = draw_chart(generator, part)
        asked = _ask(SKILLS[generator.integers(len(SKILLS))], chart, generator)
        wording = int(generator.integers(len(QUESTIONS[asked.skill])))
        drawn.append(Problem(asked, wording, chart, draw_style(generator), solve(asked, chart).text))
    return drawn


def noisy_problems(options: ChartOptions, generator: np.random.Generator) -> list[Problem]:
    """Draw the pool: clean problems, some of them spoiled, and near-duplicates of both in the same share."""
    craft = Craft(spoil=spoil, repeat=near_copy, allows=allows, invites=invites)
    return plant(problems(clean_rows(options), "pool", generator), options.noise_kinds, options, generator, craft)


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


def _row(problem: Problem) -> Row:
    return Row(
        question=problem.question,
        answer=problem.answer,
        result=problem.right.result,
        skill=problem.asked.skill,
        level=len(problem.chart.colours),
        picture=functools.partial(paint, problem.chart, problem.style),
        kind=problem.noise,
        error=problem.error,
        copy_of=problem.copy_of,
    )
