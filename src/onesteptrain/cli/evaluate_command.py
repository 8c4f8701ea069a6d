"""`ost evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import progress_bar, say
from onesteptrain.evaluation import Accuracy, EvaluateOptions, Evaluation, read_benchmark, write_evaluation
from onesteptrain.evaluation import evaluate as evaluate_model
from onesteptrain.proxy import LoadOptions

Flat = Parameter(name="*")


def evaluate(  # noqa: PLR0913  one parameter an option
    benchmark: Path,
    *,
    model: str,
    out: Path,
    image_root: Path | None = None,
    options: Annotated[EvaluateOptions, Flat] = EvaluateOptions(),
    loading: Annotated[LoadOptions, Flat] = LoadOptions(),
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Answer a benchmark and check the answers.

    Args:
        benchmark: Questions with an `answer` column, in any pool format.
        model: Checkpoint folder or hub name.
        out: Folder to write: one record a question, and a summary.
        image_root: Folder that relative image paths start from; by default the benchmark's own.
        options: How answers are generated and grouped.
        loading: How the model is loaded.
        overwrite: Replace an earlier evaluation in this folder.
        json: Print the result as JSON.
    """
    questions = read_benchmark(benchmark, image_root=image_root)
    with progress_bar("answering", "questions") as progress:
        result = evaluate_model(model, questions, options, load=loading, progress=progress)
    write_evaluation(result, out, overwrite=overwrite)
    groups = {column: {name: one._asdict() for name, one in by.items()} for column, by in result.by.items()}
    facts = {"out": str(out), "accuracy": result.accuracy._asdict(), "by": groups}
    say(describe(result), facts, as_json=json)


def describe(result: Evaluation) -> str:
    """The evaluation, for people."""
    lines = [f"accuracy {_percent(result.accuracy)}"]
    for column, by in result.by.items():
        lines += [f"  {column} {name}: {_percent(one)}" for name, one in by.items()]
    return "\n".join(lines)


def _percent(one: Accuracy) -> str:
    interval = f"95 % interval {100 * one.low:.1f} to {100 * one.high:.1f}"
    return f"{100 * one.value:.1f} % ({one.correct} of {one.questions}; {interval})"
