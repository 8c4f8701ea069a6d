"""Pretrain a model of the charts data on clean rows.

pretrain.py NAME [--out FOLDER]; NAME is charts_proxy (InternVL architecture) or charts_target (Qwen3-VL architecture),
which the package ships, or charts_judge (Qwen3-VL architecture), which the experiments make for themselves.
Pretraining sees only charts that neither pool nor anchors nor benchmark show, and is stopped early on purpose. The
judge is to know more than the others: it is larger, is trained longer, and sees the held-out charts too. Progress is
measured on the held-out part (the judge's on new problems of the pool's charts), never on the benchmark.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from onesteptrain.synthetic.architectures import ModelSize
from onesteptrain.synthetic.charts import ChartProblem
from onesteptrain.synthetic.making import problems
from onesteptrain.synthetic.problem import Part

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from pretraining import Course, Lesson, Recipe, run

COMMON = {"image_size": 48, "vocabulary": 512}
SMALL = COMMON | {"hidden": 64, "layers": 3, "mlp": 192, "vision_hidden": 48, "vision_heads": 2, "vision_mlp": 96}
LARGE = COMMON | {"hidden": 128, "layers": 4, "mlp": 384, "vision_hidden": 64, "vision_heads": 4, "vision_mlp": 128}

MODELS = {
    "charts_proxy": Recipe("internvl", ModelSize(**SMALL), 3e-3, 0.4, 120, awake=True),
    "charts_target": Recipe("qwen3_vl", ModelSize(**SMALL), 3e-3, 0.4, 100, awake=True),
    "charts_judge": Recipe(
        "qwen3_vl", ModelSize(vision_layers=3, **LARGE), 2e-3, 0.9, 400, ("pretrain", "heldout"), "pool", awake=True
    ),
}


def lesson(problem: ChartProblem, part: Part) -> Lesson:
    return Lesson(problem.picture(part), problem.question, problem.answer)


def texts(rows: Sequence[ChartProblem]) -> list[str]:
    """What the tokenizer is trained on: the world's questions and answers, good and bad."""
    said = [text for row in rows[:3000] for text in (row.question, row.answer)]
    other = ["So we get", "Result:", "->", "The lowest is", "Below", "user\n", "assistant\n", "system\n"]
    return said + 100 * other


if __name__ == "__main__":
    run(__doc__, MODELS, Course(functools.partial(problems, ChartProblem), lesson, texts))
