"""Pretrain a model of the digits data on clean rows.

pretrain.py NAME [--out FOLDER]; NAME is proxy (InternVL architecture), target or target_large (Qwen3-VL architecture),
which the package ships, or judge or proxy_same (Qwen3-VL architecture), which the experiments make for themselves.
Pretraining sees only scans that neither pool nor anchors nor benchmark show. It is stopped early on purpose: the model
is to be competent, not finished, as a real model is that goes into fine-tuning. The judge is to know more than the
others: it is larger, is trained longer, and sees the held-out scans too. Progress is measured on the held-out part (the
judge's on new problems of the pool's scans), never on the benchmark.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from onesteptrain.synthetic.architectures import ModelSize
from onesteptrain.synthetic.digits import OFF_TOPIC, QUESTIONS, DigitProblem
from onesteptrain.synthetic.making import problems
from onesteptrain.synthetic.problem import Part

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from pretraining import Course, Lesson, Recipe, run

SMALL = {"hidden": 64, "layers": 3, "mlp": 192, "vision_hidden": 48, "vision_heads": 2, "vision_mlp": 96}
LARGE = {"hidden": 128, "layers": 4, "mlp": 384, "vision_hidden": 64, "vision_heads": 4, "vision_mlp": 128}

MODELS = {
    "proxy": Recipe("internvl", ModelSize(vocabulary=512, **SMALL), 3e-3, 0.3, 150),
    "target": Recipe("qwen3_vl", ModelSize(vocabulary=512, **SMALL), 3e-3, 0.2, 90),
    "target_large": Recipe("qwen3_vl", ModelSize(vocabulary=512, vision_layers=3, **LARGE), 2e-3, 0.15, 60),
    "proxy_same": Recipe("qwen3_vl", ModelSize(vocabulary=512, **SMALL), 3e-3, 0.3, 150),
    "judge": Recipe(
        "qwen3_vl", ModelSize(vocabulary=512, vision_layers=3, **LARGE), 2e-3, 0.8, 400, ("pretrain", "heldout"), "pool"
    ),
}


def lesson(problem: DigitProblem, part: Part) -> Lesson:
    return Lesson(problem.picture(part), problem.question, problem.answer)


def texts(rows: Sequence[DigitProblem]) -> list[str]:
    """What the tokenizer is trained on: the world's questions and answers, good and bad."""
    wordings = [wording for variants in QUESTIONS.values() for wording in variants]
    return (
        [row.answer for row in rows[:2000]] + 100 * wordings + 100 * [*OFF_TOPIC, "user\n", "assistant\n", "system\n"]
    )


if __name__ == "__main__":
    run(__doc__, MODELS, Course(functools.partial(problems, DigitProblem), lesson, texts))
