"""Evaluate into a run directory: what was asked is kept there, and a killed evaluation continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onesteptrain.evaluation.evaluating import (
    RESULTS,
    SUMMARY,
    Evaluation,
    Graded,
    Metrics,
    check_columns,
    read_results,
    summarise,
    summary_facts,
    write_results,
)
from onesteptrain.storage.atomic import write_json
from onesteptrain.storage.run_directory import begin_run

REPLIES = "replies.part.jsonl"
"""Replies of an evaluation that is not done yet."""


def evaluate_into(  # noqa: PLR0913  the parts of one request
    out: Path,
    request: Mapping[str, Any],
    inputs: Mapping[str, str],
    answer: Callable[[Path], Sequence[Graded]],
    *,
    by: Sequence[str] = (),
    metrics: Metrics | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Get graded answers, keep them and count them; what is in the directory already is only counted.

    Args:
        out: Run directory: `results.jsonl`, one line a question, and `summary.json`.
        request: What is asked, as plain values; the same request continues, another is refused.
        inputs: Fingerprint of each thing that goes in.
        answer: Asks and grades; given the directory, where it may keep what it has so far.
        by: Columns to give the accuracy for; no part of the request, as they can be asked for later.
        metrics: The benchmark's own measures.
        overwrite: Delete an earlier evaluation first.

    Raises:
        ConfigError: a column is in no question.
        RunError: the directory is in use for something else.
    """
    with begin_run(out, {"evaluate": dict(request)}, inputs, overwrite=overwrite):
        if not (out / RESULTS).exists():
            write_results(answer(out), out)
        (out / REPLIES).unlink(missing_ok=True)
        graded = read_results(out)
        check_columns(graded, by)
        evaluation = summarise(graded, by, metrics)
        write_json(out / SUMMARY, summary_facts(evaluation))
    return evaluation
