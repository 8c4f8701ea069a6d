"""Graded answers: how they are counted, with how much certainty, and how they are kept in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.evaluation.benchmark import Question
from onesteptrain.storage.atomic import whole_folder, write_json, write_text
from onesteptrain.storage.ownership import note_made
from onesteptrain.storage.run_directory import begin_run

RESULTS = "results.jsonl"
SUMMARY = "summary.json"
REPLIES = "replies.part.jsonl"
"""Replies of an evaluation that is not done yet."""

_Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


class Accuracy(NamedTuple):
    """Share of right answers, with the 95 % interval of Wilson."""

    correct: int
    questions: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Graded:
    """One question, what the model said, and whether it is right."""

    uid: str
    question: str
    prediction: str | None
    """The reply; nothing where the question could not be asked."""

    extracted: str | None
    """The final answer in the reply, if it has one."""

    answer: str
    correct: bool
    finished: bool
    """The reply ended by itself."""

    reason: str | None
    """Why the question could not be asked; it counts as wrong."""

    fields: Mapping[str, object]


Metrics = Callable[[Sequence[Graded]], dict[str, float | None]]
"""A benchmark's own measures beside the accuracy; those in percent are points from 0 to 100."""


class Counting(NamedTuple):
    """What is counted beside the accuracy."""

    by: Sequence[str] = ()
    """Columns to give the accuracy for; no part of a request, as they can be asked for later."""

    metrics: Metrics | None = None
    """The benchmark's own measures."""


class Evaluation(NamedTuple):
    """The graded answers of one model on one benchmark."""

    graded: list[Graded]
    accuracy: Accuracy
    by: dict[str, dict[str, Accuracy]]
    """Accuracy for each group of each column asked for."""

    metrics: Mapping[str, float | None] = MappingProxyType({})
    """The benchmark's own measures; nothing where one is not defined, such as a share of no questions."""


def evaluate_into(
    out: Path,
    request: Mapping[str, Any],
    inputs: Mapping[str, str],
    answer: Callable[[Path], Sequence[Graded]],
    *,
    counting: Counting = Counting(),
    overwrite: bool = False,
) -> Evaluation:
    """Get graded answers, keep them and count them; what is in the directory already is only counted.

    Args:
        out: Run directory: `results.jsonl`, one line a question, and `summary.json`.
        request: What is asked, as plain values; the same request continues, another is refused.
        inputs: Fingerprint of each thing that goes in.
        answer: Asks and grades; given the directory, where it may keep what it has so far.
        counting: What is counted beside the accuracy.
        overwrite: Delete an earlier evaluation first.

    Raises:
        ConfigError: a column is in no question.
        RunError: the directory is in use for something else.
    """
    with begin_run(out, {"evaluate": dict(request)}, inputs, overwrite=overwrite):
        if not (out / RESULTS).exists():
            note_made(out / REPLIES)
            write_results(answer(out), out)
        (out / REPLIES).unlink(missing_ok=True)
        graded = read_results(out)
        check_columns(graded, counting.by)
        evaluation = summarise(graded, counting)
        write_json(out / SUMMARY, summary_facts(evaluation))
    return evaluation


def summarise(graded: list[Graded], counting: Counting = Counting()) -> Evaluation:
    """Count the right answers, in all and by columns."""
    groups = {column: _accuracy_by(graded, column) for column in counting.by}
    accuracy = wilson(sum(row.correct for row in graded), len(graded))
    return Evaluation(graded, accuracy, groups, counting.metrics(graded) if counting.metrics is not None else {})


def write_evaluation(evaluation: Evaluation, out: Path, *, overwrite: bool = False) -> None:
    """Write a folder with `results.jsonl`, one line a question, and `summary.json`.

    Raises:
        RunError: the output is taken.
    """
    with whole_folder(out, kind="an evaluation", overwrite=overwrite) as part:
        write_results(evaluation.graded, part)
        write_json(part / SUMMARY, summary_facts(evaluation))


def write_results(graded: Sequence[Graded], folder: Path) -> None:
    """Write FOLDER/results.jsonl, one line a question, whole or not at all."""
    lines = [json.dumps(asdict(row), ensure_ascii=False, default=str) for row in graded]
    write_text(folder / RESULTS, "\n".join(lines) + "\n")


def read_results(folder: Path) -> list[Graded]:
    """The graded questions of an evaluation, without their rules.

    Raises:
        RunError: the folder holds no evaluation.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise RunError(f"{folder} holds no evaluation (it has no {RESULTS}); give the --out of `ost evaluate`")
    try:
        return [Graded(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}); evaluate again") from error


def summary_facts(evaluation: Evaluation) -> dict[str, Any]:
    """What `summary.json` says, as plain values."""
    by = {
        column: {name: accuracy._asdict() for name, accuracy in groups.items()}
        for column, groups in evaluation.by.items()
    }
    return {
        "accuracy": evaluation.accuracy._asdict(),
        "by": by,
        "metrics": dict(evaluation.metrics),
        "cut_off": cut_off(evaluation.graded),
        "not_asked": sum(row.reason is not None for row in evaluation.graded),
    }


def cut_off(graded: Sequence[Graded]) -> int:
    """Replies that reached the limit of new tokens before they ended."""
    return sum(row.reason is None and not row.finished for row in graded)


def check_columns(rows: Sequence[Question | Graded], by: Sequence[str]) -> None:
    """Refuse columns that no question has, before anything is asked.

    Raises:
        ConfigError: there is no such column, or no question.
    """
    if not rows:
        raise ConfigError("there are no questions; give a benchmark with at least one")
    there = {name for row in rows for name in row.fields}
    for column in by:
        if column not in there:
            raise ConfigError(f"no question has a column {column!r}; there are {', '.join(sorted(there)) or 'none'}")


def wilson(correct: int, questions: int) -> Accuracy:
    """The interval holds at 0 % and 100 % and for few questions too, where the usual one has no width.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    share = correct / questions
    shrink = 1 + _Z95**2 / questions
    middle = (share + _Z95**2 / (2 * questions)) / shrink
    half = _Z95 / shrink * math.sqrt(share * (1 - share) / questions + _Z95**2 / (4 * questions**2))
    return Accuracy(correct, questions, share, max(0.0, middle - half), min(1.0, middle + half))


def _accuracy_by(graded: Sequence[Graded], column: str) -> dict[str, Accuracy]:
    """Accuracy of each group, in alphabetical order; a missing group is "-", a list counts in each of its groups."""
    groups: dict[str, list[bool]] = {}
    for row in graded:
        value = row.fields.get(column)
        for group in value if isinstance(value, list | tuple) else [value]:
            groups.setdefault("-" if group is None else str(group), []).append(row.correct)
    return {name: wilson(sum(marks), len(marks)) for name, marks in sorted(groups.items())}
