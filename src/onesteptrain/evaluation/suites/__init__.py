"""The four public benchmarks of the paper, each read in its own schema."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from onesteptrain.data.formats.uids import UidCounter
from onesteptrain.errors import ConfigError, PoolError
from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.suites.mathematics import MATHVISION, MATHVISTA
from onesteptrain.evaluation.suites.reasoning import LOGICVISTA, WEMATH
from onesteptrain.evaluation.suites.rows import Row, Suite, read_rows

SuiteName = Literal["mathvision", "mathvista", "wemath", "logicvista"]

SUITES: dict[SuiteName, Suite] = {
    "mathvision": MATHVISION,
    "mathvista": MATHVISTA,
    "wemath": WEMATH,
    "logicvista": LOGICVISTA,
}

__all__ = ["SUITES", "SuiteName", "load_suite", "split_of"]


def load_suite(
    name: SuiteName, *, path: Path | None = None, split: str | None = None, image_root: Path | None = None
) -> list[Question]:
    """The questions of a public benchmark, in its own order.

    Args:
        name: Which.
        path: A copy on this machine; without, the hub is asked.
        split: Which split; by default the suite's first.
        image_root: Folder that relative image paths start from; by default that of the copy.

    Raises:
        ConfigError: the suite has no such split with answers.
        PoolError: it cannot be loaded, or a row is not in its schema.
    """
    suite, uids = SUITES[name], UidCounter()
    wanted = split_of(name, split)
    root = image_root or (Path() if path is None else path if path.is_dir() else path.parent)
    questions = []
    for number, columns in enumerate(read_rows(suite.hub, wanted, path)):
        question = suite.question(Row(columns, f"{path or suite.hub}, row {number}", root))
        if question is not None:
            questions.append(dataclasses.replace(question, uid=uids.assign(question.uid)))
    if not questions:
        raise PoolError(f"{path or suite.hub} holds no questions; give a copy with at least one")
    return questions


def split_of(name: SuiteName, split: str | None) -> str:
    """The split to read.

    Raises:
        ConfigError: the suite has no such split with answers.
    """
    there = SUITES[name].splits
    if split is not None and split not in there:
        raise ConfigError(f"{name} has no split {split!r} with right answers; choose {' or '.join(there)}")
    return split or there[0]
