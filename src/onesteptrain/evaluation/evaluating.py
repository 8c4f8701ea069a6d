"""Evaluate a model on a benchmark: generate, check, count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation.answers import extract_answer, same_answer
from onesteptrain.evaluation.benchmark import Question, read_benchmark
from onesteptrain.evaluation.results import Counting, Evaluation, Graded, check_columns, summarise
from onesteptrain.storage.phases import begin_phase

if TYPE_CHECKING:
    from onesteptrain.evaluation.generation import Reply
    from onesteptrain.proxy import LoadOptions, Proxy


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
    from onesteptrain.evaluation.generation import Journal, generate
    from onesteptrain.proxy import Proxy, load_proxy

    options = options or EvaluateOptions()
    questions = read_benchmark(benchmark) if isinstance(benchmark, str | Path) else benchmark
    check_columns(questions, options.by)
    book = Journal(journal) if journal is not None else None
    known = book.replies() if book is not None else {}
    if len(known) < len(questions):
        if not isinstance(model, Proxy):
            begin_phase("loading the model")
        replies = generate(
            model if isinstance(model, Proxy) else load_proxy(model, options=load),
            [question.turns for question in questions],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            journal=book,
            progress=progress,
        )
    else:
        replies = [known[place] for place in range(len(questions))]
    graded = [_grade(question, reply) for question, reply in zip(questions, replies, strict=True)]
    return summarise(graded, Counting(options.by))


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
