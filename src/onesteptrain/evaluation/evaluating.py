"""Evaluate a model on a benchmark: generate, check, count."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.evaluation.answers import extract_answer, same_answer
from onesteptrain.evaluation.benchmark import Question, read_benchmark
from onesteptrain.evaluation.generation import Reply, generate
from onesteptrain.evaluation.journal import Journal
from onesteptrain.evaluation.summary import Accuracy, accuracy_by, wilson
from onesteptrain.proxy import LoadOptions, Proxy, load_proxy
from onesteptrain.storage.atomic import whole_folder, write_json, write_text

RESULTS = "results.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class EvaluateOptions:
    """How a model is evaluated."""

    max_new_tokens: int = 512
    """Longest reply; a longer one is cut off, and an answer at its cut end does not count."""

    batch_size: int = 32
    """Questions in one pass."""

    by: tuple[str, ...] = ()
    """Columns to give the accuracy for, group by group; a question with a list counts in each of its groups."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens} and batch_size {self.batch_size}; each must be at least 1"
            )


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


class Evaluation(NamedTuple):
    """The graded answers of one model on one benchmark."""

    graded: list[Graded]
    accuracy: Accuracy
    by: dict[str, dict[str, Accuracy]]
    """Accuracy for each group of each column asked for."""

    metrics: Mapping[str, float | None] = MappingProxyType({})
    """The benchmark's own measures; nothing where one is not defined, such as a share of no questions."""


def evaluate(
    model: Proxy | str | Path,
    benchmark: Path | Sequence[Question],
    options: EvaluateOptions | None = None,
    *,
    load: LoadOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    journal: Path | None = None,
) -> Evaluation:
    """Ask a model all questions and grade its answers, in the order of the benchmark.

    Args:
        model: A loaded model, or a checkpoint.
        benchmark: A file for `read_benchmark`, or its questions.
        options: How.
        load: How a checkpoint is loaded.
        progress: Told the questions answered and the questions in all.
        journal: File that replies are kept in as they come; those in it are not asked for again, so it must stem from
            the same request.

    Raises:
        ConfigError: a column to group by is in no row.
        ModelError: the checkpoint cannot be loaded.
        PoolError: the benchmark cannot be read.
    """
    options = options or EvaluateOptions()
    questions = read_benchmark(benchmark) if isinstance(benchmark, str | Path) else benchmark
    check_columns(questions, options.by)
    book = Journal(journal) if journal is not None else None
    known = book.replies() if book is not None else {}
    if len(known) == len(questions):
        replies = [known[place] for place in range(len(questions))]
    else:
        replies = generate(
            model if isinstance(model, Proxy) else load_proxy(model, options=load),
            [question.turns for question in questions],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            known=known,
            keep=book.add if book is not None else None,
            progress=progress,
        )
    return summarise([_grade(*pair) for pair in zip(questions, replies, strict=True)], options.by)


def summarise(graded: list[Graded], by: Sequence[str] = (), metrics: Metrics | None = None) -> Evaluation:
    """Count the right answers, in all and by columns."""
    groups = {column: accuracy_by(_marks(graded, column)) for column in by}
    accuracy = wilson(sum(one.correct for one in graded), len(graded))
    return Evaluation(graded, accuracy, groups, metrics(graded) if metrics is not None else {})


def write_evaluation(evaluation: Evaluation, out: Path, *, overwrite: bool = False) -> None:
    """Write a folder with `results.jsonl`, one line a question, and `summary.json`.

    Raises:
        RunError: the output is taken.
    """
    with whole_folder(out, marker=SUMMARY, overwrite=overwrite) as part:
        write_results(evaluation.graded, part)
        write_json(part / SUMMARY, summary_facts(evaluation))


def write_results(graded: Sequence[Graded], folder: Path) -> None:
    """Write FOLDER/results.jsonl, one line a question, whole or not at all."""
    lines = [json.dumps(asdict(one), ensure_ascii=False, default=str) for one in graded]
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
    by = {column: {name: one._asdict() for name, one in groups.items()} for column, groups in evaluation.by.items()}
    return {
        "accuracy": evaluation.accuracy._asdict(),
        "by": by,
        "metrics": dict(evaluation.metrics),
        "unfinished": sum(not one.finished for one in evaluation.graded),
        "not_asked": sum(one.reason is not None for one in evaluation.graded),
    }


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


def _marks(graded: Sequence[Graded], column: str) -> Iterator[tuple[object, bool]]:
    for one in graded:
        value = one.fields.get(column)
        for group in value if isinstance(value, list | tuple) else [value]:
            yield group, one.correct


def _grade(question: Question, reply: Reply | str) -> Graded:
    asked = question.turns[-1].text
    if isinstance(reply, str):
        return Graded(question.uid, asked, None, None, question.answer, False, False, reply, question.fields)
    stated = extract_answer(reply.text, finished=reply.finished)
    right = question.check or (lambda answer: same_answer(answer, question.answer))
    return Graded(
        uid=question.uid,
        question=asked,
        prediction=reply.text,
        extracted=stated,
        answer=question.answer,
        correct=stated is not None and right(stated),
        finished=reply.finished,
        reason=None,
        fields=question.fields,
    )
