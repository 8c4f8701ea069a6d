"""A second look needs the scores of a first one."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from onesteptrain.methods import Method, Setting, method_class
from onesteptrain.methods.second_look import SecondLook
from onesteptrain.storage.score_table import REFERENCE, to_table, write_table
from tests.building import sample
from tests.methods.setups import default_setting


@functools.cache
def first_scores() -> Path:
    """Rows 0 to 6, as the contract has them, and the anchors, by the same proxy."""
    folder = Path(tempfile.mkdtemp(prefix="ost-first-"))
    scorer = method_class("one_step")(batch_size=4, store_tokens=True).prepare(default_setting())
    rows = [sample(row, images=row % 2) for row in range(7)]
    scored = list(zip(rows, scorer(rows), strict=True))
    for name, found in (("scores.parquet", scored), (REFERENCE, scorer.reference())):
        placed = ((one.uid, row, record) for row, (one, record) in enumerate(found))
        write_table(to_table(placed), folder / name)
    return folder / "scores.parquet"


def setup(seed: int) -> tuple[Method, Setting]:
    return SecondLook(str(first_scores()), batch_size=4), default_setting(seed)
