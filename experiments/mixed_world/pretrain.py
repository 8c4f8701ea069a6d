"""Pretrain a model of the mixed data on clean rows of all its sources.

pretrain.py NAME [--out FOLDER]; NAME is mixed_proxy (InternVL architecture) or mixed_target (Qwen3-VL architecture),
which the package ships. Pretraining sees only pictures and numbers that neither pool nor anchors nor benchmark show,
and is stopped early on purpose. The sources are taught by their difficulty, not in the shares of the pool. Progress is
measured on the held-out part, never on the benchmark.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onesteptrain.synthetic.architectures import ModelSize
from onesteptrain.synthetic.digits import OFF_TOPIC
from onesteptrain.synthetic.mixed import SOURCES, Source
from onesteptrain.synthetic.problem import Part, Problem

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from pretraining import Course, Lesson, Recipe, run

SMALL = {
    "vocabulary": 512,
    "hidden": 64,
    "layers": 3,
    "mlp": 192,
    "vision_hidden": 48,
    "vision_heads": 2,
    "vision_mlp": 96,
}

MODELS = {
    "mixed_proxy": Recipe("internvl", ModelSize(image_size=48, **SMALL), 3e-3, 0.35, 150, awake=True),
    "mixed_target": Recipe("qwen3_vl", ModelSize(image_size=32, **SMALL), 3e-3, 0.35, 150, awake=True),
}

TAUGHT: Mapping[Source, float] = {"digits": 0.3, "charts": 0.35, "text": 0.2, "short": 0.15}
"""Share of each source in pretraining."""


def problems(count: int, part: Part, generator: np.random.Generator) -> list[Problem]:
    """Draw so many clean problems of all sources."""
    names = generator.choice(list(TAUGHT), count, p=list(TAUGHT.values()))
    return [SOURCES[name].draw(part, generator) for name in names]


def lesson(problem: Problem, part: Part) -> Lesson:
    return Lesson(problem.picture(part), problem.question, problem.answer)


def texts(rows: Sequence[Problem]) -> list[str]:
    """What the tokenizer is trained on: the world's questions and answers, good and bad."""
    said = [text for row in rows[:4000] for text in (row.question, row.answer)]
    other = ["So we get", "Result:", "->", "The lowest is", "Below", "Odd:", "None is odd.", *OFF_TOPIC]
    return said + 100 * [*other, "user\n", "assistant\n", "system\n"]


if __name__ == "__main__":
    run(__doc__, MODELS, Course(problems, lesson, texts))
