"""`ost run`, `ost compare` and `ost demo`: all steps at once."""

from __future__ import annotations

import inspect
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.options import HOW, Writer
from onesteptrain.cli.output import duration, tell
from onesteptrain.evaluation.worth import worth_of_arms
from onesteptrain.jobs.comparison import compare, read_comparison
from onesteptrain.jobs.demo import DemoOptions, run_demo
from onesteptrain.jobs.job import read_job, run_job
from onesteptrain.jobs.planning import Plan, plan
from onesteptrain.jobs.template import job_keys
from onesteptrain.reporting.comparison import comparison_table, write_comparison
from onesteptrain.reporting.figures import need_matplotlib


@dataclass(frozen=True)
class Run(Writer):
    """Do all steps from one YAML file; what is done already is not done again, and budgets may be added to `keep`.

    Options on the command line win over the file: `--score.step-size 1e-4` is the key `step_size` under `score`.
    The keys are listed below, and with their own options in docs/running.md and in the file that `ost init` writes.

    Example: `ost run job.yaml --dry-run`
    """

    file: Path
    """The YAML file, or the config.yaml of an earlier run; paths in it start from the working directory."""

    keys: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)] = ()
    """Keys of the file with other values, such as `--keep 20% 50%`."""

    _: KW_ONLY

    dry_run: bool = False
    """Check everything, score 80 rows, and say what each step will take; nothing is written."""

    def __call__(self) -> None:
        """Do what is not done yet."""
        job = read_job(self.file, self.keys)
        if self.dry_run:
            expected = plan(job)
            steps = [step._asdict() for step in expected.steps]
            self.say(describe_plan(expected), {"steps": steps, "seconds": expected.seconds})
            return
        facts = run_job(job, overwrite=self.overwrite, tell=tell)
        self.say("\n".join([*facts.get("worth", ()), f"done: {job.out}"]), facts, ["advise", job.out])


Run.__doc__ = "\n".join([inspect.cleandoc(Run.__doc__ or ""), "", *(f"- {key}: {text}" for key, text, _ in job_keys())])


def describe_plan(expected: Plan) -> str:
    """What a job will take, for people."""
    lines = [
        f"{step.name:<16} {step.rows:>9} rows  {'?' if step.seconds is None else duration(step.seconds):>8}  {step.how}"
        for step in expected.steps
    ]
    whole = "not known" if expected.seconds is None else f"about {duration(expected.seconds)}"
    return "\n".join([*lines, f"all of it: {whole} on this machine; all options are checked"])


@dataclass(frozen=True)
class Compare(Writer):
    """Compare methods, shares and protocols on one pool, from one YAML file; what is done already is not done again.

    Example: `ost compare bakeoff.yaml --seeds 5`
    """

    file: Path
    """The YAML file, or the comparison.yaml of an earlier one; paths in it start from the working directory."""

    _: KW_ONLY

    out: Path | None = None
    """Directory, in place of the file's; results.json, differences.json, table.md and two figures go there."""

    seeds: int | None = None
    """Trainings of each arm, in place of the file's."""

    workers: int = 0
    """Trainings at a time; 0 is one for each processor, or one for each GPU where there are some."""

    def __call__(self) -> None:
        """Train and measure what is not measured yet."""
        job = read_comparison(self.file, out=self.out, seeds=self.seeds)
        need_matplotlib()
        done = compare(job, workers=self.workers, overwrite=self.overwrite, tell=tell)
        written = write_comparison(done.records, done.differences, job.out)
        text = comparison_table(done.records, done.differences) + "\n\n" + "\n".join(map(str, written))
        verdict = {protocol: worth_of_arms(done.differences, protocol) for protocol in job.protocols}
        self.say(text, {"results": done.records, "differences": done.differences, "verdict": verdict})


@dataclass(frozen=True)
class Demo(Writer):
    """Take the built-in digits world through everything, in a few minutes on a laptop.

    Example: `ost demo --out ost-demo`
    """

    _: KW_ONLY

    out: Path = Path("ost-demo")
    """New folder for all that is made."""

    options: Annotated[DemoOptions, HOW] = DemoOptions()

    def __call__(self) -> None:
        """Run it; people see the table in any case."""
        results = run_demo(self.out, self.options, overwrite=self.overwrite, tell=tell if self.json else print)
        if self.json:
            self.say("", {"results": results})
        else:
            tell("next: ost init POOL --heldout HELDOUT --proxy MODEL")
