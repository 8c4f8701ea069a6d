"""`ost train` and `ost evaluate`: what a target learns from a subset."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from onesteptrain.cli.options import FILES, HOW, MODEL, ModelRunner, panel
from onesteptrain.cli.output import tell
from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import Accuracy, EvaluateOptions, Evaluation, Graded, Question, read_benchmark
from onesteptrain.evaluation import evaluate as evaluate_model
from onesteptrain.evaluation.benchmark import questions_fingerprint
from onesteptrain.evaluation.lmms_eval import TASKS, Program, run_lmms_eval
from onesteptrain.evaluation.paired import Difference, paired_difference, paired_marks
from onesteptrain.evaluation.results import (
    REPLIES,
    Counting,
    check_columns,
    cut_off,
    evaluate_into,
    read_results,
    summary_facts,
)
from onesteptrain.evaluation.suites import SUITES, SuiteName, load_suite, split_of
from onesteptrain.jobs.progress import progress_bar
from onesteptrain.jobs.reweighting import reweight
from onesteptrain.jobs.steps import PoolOptions, plain, tell_pictures
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.storage.fingerprints import fingerprint
from onesteptrain.training import FinetuneOptions, TrainOptions, train


@dataclass(frozen=True)
class Train(ModelRunner):
    """Fine-tune a target model on a subset: under Protocol A with --epochs, under Protocol B with --steps.

    Example: `ost train subset.json --target Qwen/Qwen3-VL-2B-Instruct --steps 2000 --out tuned`
    """

    subset: Path
    """What to train on, such as a file that `ost select` wrote."""

    _: KW_ONLY

    target: str
    """Checkpoint folder or hub name of a vision-language model."""

    out: Path
    """Checkpoint folder to write."""

    mask_harmful: Path | None = None
    """Run directory of scores with --store-tokens: tokens of answers that stand out against its anchors are left out
    of the loss."""

    weigh: Path | None = None
    """Run directory of scores: each row counts in the loss by its probability to be clean."""

    finetune: Annotated[FinetuneOptions, HOW] = FinetuneOptions()
    reading: Annotated[PoolOptions, FILES] = PoolOptions()
    scope: Annotated[ScopeOptions, MODEL] = ScopeOptions()
    loading: Annotated[LoadOptions, MODEL] = LoadOptions()

    def __call__(self) -> None:
        """Train and say how the loss fell."""
        options = TrainOptions(finetune=self.finetune, scope=self.scope, load=self.loading)
        subset = self.reading.open_checked(self.subset, tell)
        rows, said = reweight(subset, mask_harmful=self.mask_harmful, weigh=self.weigh)
        with progress_bar("training", "steps") as progress:
            result = train(self.target, rows, options, self.out, overwrite=self.overwrite, progress=progress)
        text = (
            f"trained on {result.rows} rows in {result.steps} steps and {result.seconds:.1f} s, "
            f"loss {result.losses[0]:.3f} to {result.losses[-1]:.3f}: {result.checkpoint}"
        )
        if said:
            text += f"\n{said}"
        if result.refused:
            text += f"\n{len(result.refused)} rows left out, such as: {next(iter(result.refused.values()))}"
        facts = {**result._asdict(), "checkpoint": str(result.checkpoint)}
        then = ["evaluate", "BENCHMARK", "--model", self.out, "--out", "answers"]
        self.say(text, facts, then)


@dataclass(frozen=True)
class BenchmarkOptions:
    """Where the questions come from."""

    suite: SuiteName | None = None
    """Public benchmark to answer in place of a file."""

    suite_path: Path | None = None
    """Copy of the suite on this machine; without, it is read from the Hugging Face hub."""

    split: str | None = None
    """Split of the suite; by default its first one with right answers."""

    image_root: Path | None = None
    """Folder that relative image paths start from; by default the benchmark's own."""

    image_column: tuple[str, ...] = ()
    """Columns of a benchmark file that hold pictures; by default `images` or `image`."""

    allow_outside: bool = False
    """Open pictures outside of the image root too, wherever a row points to."""


@dataclass(frozen=True)
class EvaluatorOptions:
    """Who asks and checks."""

    evaluator: Literal["own", "lmms-eval"] = "own"
    """This program, or lmms-eval by its own prompts and rules."""

    lmms_eval: str = "lmms-eval"
    """Executable of lmms-eval, or the Python of its environment."""

    lmms_model: str | None = None
    """What lmms-eval calls the code that runs the checkpoint; by default told from its config.json."""


@dataclass(frozen=True)
class Evaluate(ModelRunner):
    """Answer a benchmark and check the answers, continuing an evaluation that was interrupted.

    Example: `ost evaluate --suite mathvista --model tuned --out answers`
    """

    benchmark: Path | None = None
    """Questions with an `answer` column, in any pool format; or give --suite."""

    _: KW_ONLY

    model: str
    """Checkpoint folder or hub name."""

    out: Path
    """Run directory: one record a question, and a summary."""

    against: Path | None = None
    """Folder of another evaluation of the same questions, to compare with."""

    source: Annotated[BenchmarkOptions, panel("What is asked", 1)] = BenchmarkOptions()
    options: Annotated[EvaluateOptions, HOW] = EvaluateOptions()
    asking: Annotated[EvaluatorOptions, HOW] = EvaluatorOptions()
    loading: Annotated[LoadOptions, MODEL] = LoadOptions()

    def __call__(self) -> None:
        """Ask, check and compare."""
        suite = self.source.suite
        if (self.benchmark is None) == (suite is None):
            raise ConfigError("give either a benchmark file or --suite")
        source, lmms = self.source, self.asking.evaluator == "lmms-eval"
        if suite is None and (lmms or source.split is not None or source.suite_path is not None):
            raise ConfigError("--evaluator lmms-eval, --split and --suite-path go with --suite only; name a suite")
        other = read_results(self.against) if self.against is not None else None
        result = self._by_lmms_eval(suite) if lmms and suite is not None else self._by_us()
        difference = paired_difference(*([marks] for marks in paired_marks(result.graded, other))) if other else None
        facts = {"out": str(self.out), **summary_facts(result)}
        if difference is not None:
            facts["difference"] = difference._asdict()
        then = ["evaluate", self.benchmark or f"--suite={suite}", "--model", "OTHER", "--against", self.out]
        text = describe_evaluation(result, difference)
        self.say(text, facts, () if self.against else [*then, "--out", "answers2"])

    def _by_us(self) -> Evaluation:
        questions = self._questions()
        check_columns(questions, self.options.by)

        def answer(folder: Path) -> list[Graded]:
            with progress_bar("answering", "questions") as progress:
                result = evaluate_model(
                    self.model,
                    questions,
                    self.options,
                    load=self.loading,
                    progress=progress,
                    journal=folder / REPLIES,
                )
            return result.graded

        inputs = {"model": fingerprint(self.model), "questions": questions_fingerprint(questions)}
        return evaluate_into(self.out, self._request(), inputs, answer, **self._kept())

    def _questions(self) -> list[Question]:
        source = self.source
        if source.suite is not None:
            return load_suite(source.suite, path=source.suite_path, split=source.split, image_root=source.image_root)
        path = self.benchmark or Path()
        questions = read_benchmark(
            path,
            image_root=source.image_root,
            image_column=source.image_column,
            allow_outside=source.allow_outside,
        )
        tell_pictures(path, questions, tell)
        return questions

    def _by_lmms_eval(self, suite: SuiteName) -> Evaluation:
        if self.source.suite_path is not None:
            raise ConfigError("lmms-eval reads the suites from the Hugging Face hub or its cache; drop --suite-path")
        program = Program(self.asking.lmms_eval, self.asking.lmms_model)
        task = TASKS[suite, split_of(suite, self.source.split)]

        def answer(folder: Path) -> list[Graded]:
            return run_lmms_eval(program, task, self.model, folder, self.options, self.loading)

        request = {**self._request(), "lmms_eval": program.path, "lmms_model": program.model}
        return evaluate_into(self.out, plain(request), {"model": fingerprint(self.model)}, answer, **self._kept())

    def _request(self) -> dict[str, Any]:
        """What the answers depend on."""
        source, loading = self.source, self.loading
        request = {
            "benchmark": self.benchmark,
            "model": Path(self.model) if Path(self.model).exists() else self.model,
            "image_root": source.image_root,
            "image_column": source.image_column or None,
            "allow_outside": source.allow_outside or None,
            "max_new_tokens": self.options.max_new_tokens,
            "device": loading.device,
            "dtype": loading.dtype,
            "attention": loading.attention,
            "evaluator": self.asking.evaluator,
        }
        if source.suite is not None:
            split = split_of(source.suite, source.split)
            request |= {"suite": source.suite, "suite_path": source.suite_path, "split": split}
        return dict(plain(request))

    def _kept(self) -> dict[str, Any]:
        """What can be asked for later too."""
        metrics = SUITES[self.source.suite].metrics if self.source.suite is not None else None
        return {"counting": Counting(self.options.by, metrics), "overwrite": self.overwrite}


def describe_evaluation(result: Evaluation, difference: Difference | None = None) -> str:
    """The evaluation, for people."""
    lines = [f"accuracy {_percent(result.accuracy)}"]
    if cut := cut_off(result.graded):
        lines.append(f"{cut} of {len(result.graded)} replies were cut off; with a higher --max-new-tokens they may end")
    for column, by in result.by.items():
        lines += [f"  {column} {name}: {_percent(accuracy)}" for name, accuracy in by.items()]
    lines += [
        f"  {name}: {'not defined' if value is None else f'{value:.1f}'}" for name, value in result.metrics.items()
    ]
    if difference is not None:
        lines.append(
            f"difference {difference.value:+.1f} points ({100 * difference.confidence:g} % interval "
            f"{difference.low:+.1f} to {difference.high:+.1f}; p = {difference.p_value:.2g}; "
            f"{difference.wins} questions won, {difference.losses} lost, {difference.ties} alike)"
        )
    return "\n".join(lines)


def _percent(accuracy: Accuracy) -> str:
    interval = f"95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}"
    return f"{100 * accuracy.value:.1f} % ({accuracy.correct} of {accuracy.questions}; {interval})"
