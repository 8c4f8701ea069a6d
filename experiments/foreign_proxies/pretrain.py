"""Pretrain proxies that know no question and no answer of a pool, as a user's proxy knows none of theirs.

pretrain.py OUT makes three InternVLs of the size of the packaged proxies, each in a folder of OUT, unless it is there.
senses learns to transcribe pictures of digits, to list the bars of charts, and to do sums, sort and compare without
pictures, in words of its own. digits_foreign goes on from it with the charts and texts of the mixed data and still
transcribes digits, but is asked nothing about them; charts_foreign goes on with digits and texts and still lists bars.
All pictures are those that neither pool nor anchors nor benchmark show.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from onesteptrain.synthetic import charts, digits, number_texts
from onesteptrain.synthetic.architectures import ModelSize
from onesteptrain.synthetic.making import problems as clean_problems
from onesteptrain.synthetic.mixed import SOURCES, Source
from onesteptrain.synthetic.problem import Part

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from pretraining import Course, Lesson, Recipe, asked, make

SIZE = ModelSize(
    image_size=48, vocabulary=512, hidden=64, layers=3, mlp=192, vision_hidden=48, vision_heads=2, vision_mlp=96
)

SENSES = "senses"

MODELS = {
    SENSES: Recipe("internvl", SIZE, 3e-3, 0.7, 150, awake=True),
    "digits_foreign": Recipe("internvl", SIZE, 2e-3, 0.6, 150),
    "charts_foreign": Recipe("internvl", SIZE, 2e-3, 0.6, 150),
}

TRANSCRIBE = ("Transcribe this picture", "Write down what you see", "Copy the handwriting")
DESCRIBE = ("List this chart", "Describe the drawing", "Turn the chart into a table")
DRILLS = ("add", "subtract", "multiply", "sort", "odd")

Task = Callable[[Part, np.random.Generator], Lesson]


def transcribed(part: Part, generator: np.random.Generator) -> Lesson:
    """Handwriting, copied."""
    shown = digits.DigitProblem.draw(part, generator)
    return Lesson(shown.picture(part), _one(TRANSCRIBE, generator), " ".join(map(str, shown.digits)))


def listed(part: Part, generator: np.random.Generator) -> Lesson:
    """A chart as a table."""
    shown = charts.ChartProblem.draw(part, generator)
    chart = shown.chart
    cells = [f"{colour}={value}" for colour, value in zip(chart.colours, chart.values, strict=True)]
    return Lesson(shown.picture(part), _one(DESCRIBE, generator), f"{9 * chart.scale} | {' '.join(cells)}")


def drilled(part: Part, generator: np.random.Generator) -> Lesson:
    """A drill on two to four numbers, of tens or of ones."""
    scale = int(generator.choice((1, 1, 10)))
    numbers = [scale * int(number) for number in generator.integers(0, 10, generator.integers(2, 5))]
    drill, said = _one(DRILLS, generator), " ".join(map(str, numbers))
    low, high = sorted(numbers[:2])
    if drill == "add":
        start = int(generator.integers(20)) * scale
        return Lesson(None, f"add {start} {numbers[0]}", f"{start}+{numbers[0]}={start + numbers[0]}")
    if drill == "subtract":
        return Lesson(None, f"subtract {high} {low}", f"{high}-{low}={high - low}")
    if drill == "multiply":
        first, second = low // scale, high // scale
        return Lesson(None, f"multiply {first} {second}", f"{first}x{second}={first * second}")
    if drill == "sort":
        return Lesson(None, f"sort {said}", " ".join(map(str, sorted(numbers, reverse=True))))
    return Lesson(None, f"odd {said}", " ".join(str(number) for number in numbers if number % 2) or "no")


def of_source(source: Source, part: Part, generator: np.random.Generator) -> Lesson:
    """A clean row of the mixed data."""
    row = SOURCES[source].draw(part, generator)
    return Lesson(row.picture(part), row.question, row.answer)


def as_list(task: Task, part: Part, generator: np.random.Generator) -> Lesson:
    """The same, as the sources write lists: with commas, and a colour with its value in one word."""
    lesson = task(part, generator)
    said = lesson.answer.rpartition(" | ")[2]
    return lesson._replace(answer=said.replace(" ", ", ").replace("=", "") if "=" in said else said.replace(" ", ","))


TASKS: Mapping[str, Sequence[Task]] = {
    SENSES: (transcribed, listed, drilled),
    "digits_foreign": (
        functools.partial(as_list, transcribed),
        functools.partial(of_source, "charts"),
        functools.partial(of_source, "text"),
    ),
    "charts_foreign": (
        functools.partial(as_list, listed),
        functools.partial(of_source, "digits"),
        functools.partial(of_source, "text"),
    ),
}
"""What each model is taught, each as often."""


def problems(tasks: Sequence[Task], count: int, part: Part, generator: np.random.Generator) -> list[Lesson]:
    """Draw so many rows, with pictures of a part."""
    return [tasks[generator.integers(len(tasks))](part, generator) for _ in range(count)]


def texts(rows: Sequence[Lesson]) -> list[str]:
    """What the tokenizer is trained on: it knows the words of the pools, as a large one knows all common words."""
    generator = np.random.default_rng(3)
    pool = [row for kind in SOURCES.values() for row in clean_problems(kind, 500, "pretrain", generator)]
    wordings = [
        question for module in (charts, digits, number_texts) for many in module.QUESTIONS.values() for question in many
    ]
    said = [text for row in rows[:2000] for text in (row.question, row.answer)]
    other = [*digits.OFF_TOPIC, *charts.FORMATS, "The lowest is", "Below", "user\n", "assistant\n", "system\n"]
    return said + [row.answer for row in pool] + 100 * [*wordings, *other]


def _one(wordings: Sequence[str], generator: np.random.Generator) -> str:
    return wordings[generator.integers(len(wordings))]


def _as_drawn(lesson: Lesson, _: Part) -> Lesson:
    return lesson


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    options = asked(parser)
    for name, tasks in TASKS.items():
        course = Course(functools.partial(problems, tasks), _as_drawn, texts)
        start = None if name == SENSES else options.out / SENSES
        if not (options.out / name).exists():
            make(MODELS[name], course, options.out / name, options, start=start)
