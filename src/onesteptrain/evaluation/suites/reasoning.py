"""Two benchmarks of reasoning on pictures.

We-Math: problems of two or three steps, each step also asked alone.

Columns: `ID` (of the problem), `key` (2steps_1, 2steps_2, 2steps_multi, 3steps_1, ...), `question`, `option` (one text:
"A. 1; B. 2; ..."), `answer` (a letter), `image_path` (an image), `knowledge concept`, `question number`, `split`.

Source: Qiao et al., arXiv:2407.01284, section 2.3; data set We-Math/We-Math; code We-Math/We-Math,
`four_dimensional_metrics.py` and `accuracy.py`.

LogicVista: logical reasoning on pictures; the options are drawn in the picture.

Columns: `id`, `image` (or in the official file `imagename`, in the folder images/), `question` (names the options),
`answer` (a letter or digit, or several: "A, C"), `skill`, `broad_capability`, `specific_capability`, `reasoning`, ...
The official file has one blank row (v1_382), which is left out.

Source: Xiao et al., arXiv:2407.04973; code and data Yijia-Xiao/LogicVista; on the hub lscpku/LogicVista.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from onesteptrain.evaluation.answers import same_answer
from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.results import Graded
from onesteptrain.evaluation.suites.rows import REASON, Row, Suite, asked, fields_of, image_of, text_of

_BETWEEN = re.compile(r"\s*(?:,|;|&|\band\b|\s)\s*")
_LABEL = re.compile(r"\(?([A-Za-z0-9])\)?")


def wemath_question(row: Row) -> Question:
    """One row as a question; all of one problem share their `ID`."""
    text = f"{text_of(row, 'question')}\n{text_of(row, 'option')}"
    ending = f"{REASON} the letter of the right option."
    return Question(
        uid=f"{text_of(row, 'ID')}/{text_of(row, 'key')}",
        turns=asked(image_of(row, "image_path"), text, [], ending),
        answer=text_of(row, "answer"),
        fields=fields_of(row, "ID", "key", "knowledge concept"),
    )


def logicvista_question(row: Row) -> Question | None:
    """One row as a question; nothing for a row with neither question nor answer."""
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


def wemath_metrics(graded: Sequence[Graded]) -> dict[str, float | None]:
    """The benchmark's measures, in points, over the problems of which every part was asked.

    Of a problem, the steps asked alone and the whole are right or wrong:

    - insufficient knowledge (IK): the whole is wrong, and so is a step;
    - inadequate generalization (IG): the whole is wrong, and every step right;
    - complete mastery (CM): the whole is right, and so is every step (strict), or at least one (loose);
    - rote memorization (RM): the whole is right, but a step is wrong (strict), or every step (loose). It is given as a
      share of CM and RM together, the others as shares of all problems.

    The score is the share CM + IG / 2. One-, two- and three-step are plain accuracies. A share of nothing is None.
    """
    problems = _problems(graded)
    total = len(problems)
    steps, wholes = [steps for steps, _ in problems], [whole for _, whole in problems]
    unsolved = [steps for steps, whole in problems if not whole]
    solved = [steps for steps, whole in problems if whole]
    generalization = sum(all(steps) for steps in unsolved)
    measures: dict[str, float | None] = {
        "problems": float(total),
        "one_step": _points(sum(map(sum, steps)), sum(map(len, steps))),
        "two_step": _share(whole for steps, whole in problems if len(steps) == 2),
        "three_step": _share(whole for steps, whole in problems if len(steps) == 3),
        "insufficient_knowledge": _points(len(unsolved) - generalization, total),
        "inadequate_generalization": _points(generalization, total),
    }
    for name, enough in (("strict", all), ("loose", any)):
        mastered = sum(enough(steps) for steps in solved)
        measures[f"complete_mastery_{name}"] = _points(mastered, total)
        measures[f"rote_memorization_{name}"] = _points(len(solved) - mastered, sum(wholes))
        measures[f"score_{name}"] = _points(mastered + generalization / 2, total)
    return measures


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
    named = [match.group(1).upper() for part in parts if (match := _LABEL.fullmatch(part))]
    return frozenset(named) if named and len(named) == len(parts) else None


def _problems(graded: Sequence[Graded]) -> list[tuple[list[bool], bool]]:
    """Of each complete problem, whether each step and the whole are right."""
    parts: dict[tuple[str, str], dict[str, bool]] = {}
    for row in graded:
        steps, _, part = str(row.fields.get("key", "")).partition("steps_")
        parts.setdefault((str(row.fields.get("ID")), steps), {})[part] = row.correct
    complete = []
    for (_, count), marks in parts.items():
        names = [str(step) for step in range(1, int(count) + 1)] if count.isdigit() else []
        if names and set(marks) == {*names, "multi"}:
            complete.append(([marks[name] for name in names], marks["multi"]))
    return complete


def _share(marks: Iterable[bool]) -> float | None:
    known = list(marks)
    return _points(sum(known), len(known))


def _points(count: float, total: int) -> float | None:
    return 100 * count / total if total else None


WEMATH = Suite("We-Math/We-Math", ("testmini",), wemath_question, wemath_metrics)
LOGICVISTA = Suite("lscpku/LogicVista", ("test",), logicvista_question)
