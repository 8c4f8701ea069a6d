"""LogicVista: logical reasoning on pictures; the options are drawn in the picture.

Columns: `id`, `image` (or in the official file `imagename`, in the folder images/), `question` (names the options),
`answer` (a letter or digit, or several: "A, C"), `skill`, `broad_capability`, `specific_capability`, `reasoning`, ...
The official file has one blank row (v1_382), which is left out.

Source: Xiao et al., arXiv:2407.04973; code and data Yijia-Xiao/LogicVista; on the hub lscpku/LogicVista.
"""

from __future__ import annotations

import functools
import re

from onesteptrain.evaluation.answers import same_answer
from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.suites.columns import REASON, asked, fields_of, image_of, text_of
from onesteptrain.evaluation.suites.suite import Row, Suite

_BETWEEN = re.compile(r"\s*(?:,|;|&|\band\b|\s)\s*")
_LABEL = re.compile(r"\(?([A-Za-z0-9])\)?")


def question(row: Row) -> Question | None:
    """One row as a question; nothing for a row with neither question nor answer.

    Raises:
        PoolError: the row is not in the benchmark's schema.
    """
    if not row.columns.get("question") and not row.columns.get("answer"):
        return None
    answer = text_of(row, "answer")
    ending = f"{REASON} the label of the right option, or all right labels with commas between them."
    columns = {**row.columns}
    if not columns.get("image") and isinstance(name := columns.get("imagename"), str):
        columns["image"] = f"images/{name}"
    return Question(
        uid=text_of(row, "id"),
        turns=asked(image_of(row._replace(columns=columns), "image"), text_of(row, "question"), [], ending),
        answer=answer,
        fields=fields_of(row, "skill", "broad_capability", "specific_capability"),
        check=functools.partial(is_right, answer),
    )


def is_right(answer: str, stated: str) -> bool:
    """Whether all right labels are named and no other; their order and case do not matter."""
    wanted = labels(answer)
    if wanted is not None and len(wanted) > 1:
        return labels(stated) == wanted
    return same_answer(stated, answer)


def labels(text: str) -> frozenset[str] | None:
    """The labels in "A, C", "(A) and (C)" or "AC"; nothing for a text that is more than labels."""
    text = text.strip(" .$*")
    parts = [part for part in _BETWEEN.split(text) if part]
    if len(parts) == 1 and re.fullmatch(r"[A-Z]{2,}", parts[0]):
        parts = list(parts[0])
    found = [_LABEL.fullmatch(part) for part in parts]
    return frozenset(one.group(1).upper() for one in found if one is not None) if found and all(found) else None


SUITE = Suite("lscpku/LogicVista", ("test",), question)
