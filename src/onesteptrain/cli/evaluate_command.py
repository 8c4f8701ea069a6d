"""`ost evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from onesteptrain.cli.output import progress_bar, say
from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import Accuracy, EvaluateOptions, Evaluation, Graded, Question, read_benchmark
from onesteptrain.evaluation import evaluate as evaluate_model
from onesteptrain.evaluation.benchmark import questions_fingerprint
from onesteptrain.evaluation.lmms_eval import TASKS, Program, run_lmms_eval
from onesteptrain.evaluation.paired import Difference, paired_difference, paired_marks
from onesteptrain.evaluation.results import REPLIES, Counting, check_columns, evaluate_into, read_results
from onesteptrain.evaluation.suites import SUITES, SuiteName, load_suite, split_of
from onesteptrain.jobs.steps import plain
from onesteptrain.proxy import LoadOptions
from onesteptrain.storage.fingerprints import fingerprint

Flat = Parameter(name="*")


def evaluate(  # noqa: PLR0913  one parameter an option
    benchmark: Path | None = None,
    *,
    model: str,
    out: Path,
    suite: SuiteName | None = None,
    suite_path: Path | None = None,
    split: str | None = None,
    image_root: Path | None = None,
    evaluator: Literal["own", "lmms-eval"] = "own",
    lmms_eval: str = "lmms-eval",
    lmms_model: str | None = None,
    against: Path | None = None,
    options: Annotated[EvaluateOptions, Flat] = EvaluateOptions(),
    loading: Annotated[LoadOptions, Flat] = LoadOptions(),
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Answer a benchmark and check the answers, continuing an evaluation that was interrupted.

    Args:
        benchmark: Questions with an `answer` column, in any pool format; or give --suite.
        model: Checkpoint folder or hub name.
        out: Run directory: one record a question, and a summary.
        suite: Public benchmark to answer in place of a file.
        suite_path: Copy of the suite on this machine; without, it is read from the Hugging Face hub.
        split: Split of the suite; by default its first one with right answers.
        image_root: Folder that relative image paths start from; by default the benchmark's own.
        evaluator: Who asks and checks: this program, or lmms-eval by its own prompts and rules.
        lmms_eval: Executable of lmms-eval, or the Python of its environment.
        lmms_model: What lmms-eval calls the code that runs the checkpoint; by default told from its config.json.
        against: Folder of another evaluation of the same questions, to compare with.
        options: How answers are generated and grouped.
        loading: How the model is loaded.
        overwrite: Delete an earlier evaluation in this folder first.
        json: Print the result as JSON.
    """
    if (benchmark is None) == (suite is None):
        raise ConfigError("give either a benchmark file or --suite")
    if suite is None and (evaluator != "own" or split is not None or suite_path is not None):
        raise ConfigError("--evaluator lmms-eval, --split and --suite-path go with --suite only; name a suite")
    other = read_results(against) if against is not None else None
    request = {
        **{
            "benchmark": benchmark,
            "model": Path(model) if Path(model).exists() else model,
            "image_root": image_root,
            "max_new_tokens": options.max_new_tokens,
        },
        **({"suite": suite, "suite_path": suite_path, "split": split_of(suite, split)} if suite is not None else {}),
        **{"device": loading.device, "dtype": loading.dtype, "attention": loading.attention, "evaluator": evaluator},
    }
    counting = Counting(options.by, SUITES[suite].metrics if suite is not None else None)
    kept = {"counting": counting, "overwrite": overwrite}
    if evaluator == "lmms-eval" and suite is not None:
        result = _by_lmms_eval(
            out,
            request,
            kept,
            (suite, split_of(suite, split), suite_path),
            Program(lmms_eval, lmms_model),
            (options, loading),
        )
    else:
        questions = _questions(benchmark, suite, suite_path, split, image_root)
        result = _by_us(out, request, kept, questions, (options, loading))
    difference = paired_difference(*([marks] for marks in paired_marks(result.graded, other))) if other else None
    _say(result, difference, out, as_json=json)


def describe(result: Evaluation, difference: Difference | None = None) -> str:
    """The evaluation, for people."""
    lines = [f"accuracy {_percent(result.accuracy)}"]
    for column, by in result.by.items():
        lines += [f"  {column} {name}: {_percent(one)}" for name, one in by.items()]
    lines += [
        f"  {name}: {'not defined' if value is None else f'{value:.1f}'}" for name, value in result.metrics.items()
    ]
    return "\n".join([*lines, *([describe_difference(difference)] if difference is not None else [])])


def describe_difference(one: Difference) -> str:
    """The difference, for people."""
    return (
        f"difference {one.value:+.1f} points ({100 * one.confidence:g} % interval {one.low:+.1f} to {one.high:+.1f}; "
        f"p = {one.p_value:.2g}; {one.wins} questions won, {one.losses} lost, {one.ties} alike)"
    )


def _questions(
    benchmark: Path | None, suite: SuiteName | None, suite_path: Path | None, split: str | None, image_root: Path | None
) -> list[Question]:
    if suite is not None:
        return load_suite(suite, path=suite_path, split=split, image_root=image_root)
    return read_benchmark(benchmark or Path(), image_root=image_root)


def _by_us(
    out: Path,
    request: dict[str, Any],
    kept: dict[str, Any],
    questions: list[Question],
    options: tuple[EvaluateOptions, LoadOptions],
) -> Evaluation:
    how, loading = options
    model = str(request["model"])
    check_columns(questions, how.by)

    def answer(folder: Path) -> list[Graded]:
        with progress_bar("answering", "questions") as progress:
            result = evaluate_model(model, questions, how, load=loading, progress=progress, journal=folder / REPLIES)
        return result.graded

    inputs = {"model": fingerprint(model), "questions": questions_fingerprint(questions)}
    return evaluate_into(out, plain(request), inputs, answer, **kept)


def _by_lmms_eval(
    out: Path,
    request: dict[str, Any],
    kept: dict[str, Any],
    suite: tuple[SuiteName, str, Path | None],
    program: Program,
    options: tuple[EvaluateOptions, LoadOptions],
) -> Evaluation:
    name, split, path = suite
    if path is not None:
        raise ConfigError("lmms-eval reads the suites from the Hugging Face hub or its cache; leave out --suite-path")
    model = str(request["model"])

    def answer(folder: Path) -> list[Graded]:
        return run_lmms_eval(program, TASKS[name, split], model, folder, *options)

    called = {"lmms_eval": program.path, "lmms_model": program.model}
    return evaluate_into(out, plain({**request, **called}), {"model": fingerprint(model)}, answer, **kept)


def _say(result: Evaluation, difference: Difference | None, out: Path, *, as_json: bool) -> None:
    groups = {column: {name: one._asdict() for name, one in by.items()} for column, by in result.by.items()}
    facts: dict[str, Any] = {"out": str(out), "accuracy": result.accuracy._asdict(), "by": groups}
    facts |= {"metrics": dict(result.metrics)} if result.metrics else {}
    facts |= {"difference": difference._asdict()} if difference is not None else {}
    say(describe(result, difference), facts, as_json=as_json)


def _percent(one: Accuracy) -> str:
    interval = f"95 % interval {100 * one.low:.1f} to {100 * one.high:.1f}"
    return f"{100 * one.value:.1f} % ({one.correct} of {one.questions}; {interval})"
