"""Evaluate a model on a benchmark: generate, check, count."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation.answers import extract_answer, is_correct
from onesteptrain.evaluation.benchmark import Question, read_benchmark
from onesteptrain.evaluation.generation import Reply, generate
from onesteptrain.evaluation.summary import Accuracy, accuracy_by, wilson
from onesteptrain.folders import whole_folder
from onesteptrain.proxy import LoadOptions, Proxy, load_proxy
from onesteptrain.runs import write_json, write_text

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
    """Columns to give the accuracy for, group by group."""

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


class Evaluation(NamedTuple):
    """The graded answers of one model on one benchmark."""

    graded: list[Graded]
    accuracy: Accuracy
    by: dict[str, dict[str, Accuracy]]
    """Accuracy for each group of each column asked for."""


def evaluate(
    model: Proxy | str | Path,
    benchmark: Path | Sequence[Question],
    options: EvaluateOptions | None = None,
    *,
    load: LoadOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask a model all questions and grade its answers, in the order of the benchmark.

    Args:
        model: A loaded model, or a checkpoint.
        benchmark: A file for `read_benchmark`, or its questions.
        options: How.
        load: How a checkpoint is loaded.
        progress: Told the questions answered and the questions in all.

    Raises:
        ConfigError: a column to group by is in no row.
        ModelError: the checkpoint cannot be loaded.
        PoolError: the benchmark cannot be read.
    """
    options = options or EvaluateOptions()
    questions = read_benchmark(benchmark) if isinstance(benchmark, str | Path) else benchmark
    _check_columns(questions, options.by)
    proxy = model if isinstance(model, Proxy) else load_proxy(model, options=load)
    replies = generate(
        proxy,
        [question.turns for question in questions],
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        progress=progress,
    )
    return summarise([_grade(*pair) for pair in zip(questions, replies, strict=True)], options.by)


def summarise(graded: list[Graded], by: Sequence[str] = ()) -> Evaluation:
    """Count the right answers, in all and by columns."""
    groups = {column: accuracy_by((one.fields.get(column), one.correct) for one in graded) for column in by}
    return Evaluation(graded, wilson(sum(one.correct for one in graded), len(graded)), groups)


def write_evaluation(evaluation: Evaluation, out: Path, *, overwrite: bool = False) -> None:
    """Write a folder with `results.jsonl`, one line a question, and `summary.json`.

    Raises:
        RunError: the output is taken.
    """
    lines = [json.dumps(asdict(one), ensure_ascii=False, default=str) for one in evaluation.graded]
    by = {
        column: {name: accuracy._asdict() for name, accuracy in groups.items()}
        for column, groups in evaluation.by.items()
    }
    facts = {
        "accuracy": evaluation.accuracy._asdict(),
        "by": by,
        "unfinished": sum(not one.finished for one in evaluation.graded),
        "not_asked": sum(one.reason is not None for one in evaluation.graded),
    }
    with whole_folder(out, marker=SUMMARY, overwrite=overwrite) as part:
        write_text(part / RESULTS, "\n".join(lines) + "\n")
        write_json(part / SUMMARY, facts)


def _grade(question: Question, reply: Reply | str) -> Graded:
    asked = question.turns[-1].text
    if isinstance(reply, str):
        return Graded(question.uid, asked, None, None, question.answer, False, False, reply, question.fields)
    return Graded(
        uid=question.uid,
        question=asked,
        prediction=reply.text,
        extracted=extract_answer(reply.text, finished=reply.finished),
        answer=question.answer,
        correct=is_correct(reply.text, question.answer, finished=reply.finished),
        finished=reply.finished,
        reason=None,
        fields=question.fields,
    )


def _check_columns(questions: Sequence[Question], by: Sequence[str]) -> None:
    if not questions:
        raise ConfigError("there are no questions; give a benchmark with at least one")
    there = {name for question in questions for name in question.fields}
    for column in by:
        if column not in there:
            raise ConfigError(f"no question has a column {column!r}; there are {', '.join(sorted(there)) or 'none'}")
