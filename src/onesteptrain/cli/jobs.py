"""`ost run`, `ost compare` and `ost demo`: all steps at once."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from onesteptrain.cli.options import HOW, OUTPUT, Output, panel
from onesteptrain.cli.output import say, tell
from onesteptrain.jobs.comparison import compare, read_comparison
from onesteptrain.jobs.demo import DemoOptions, run_demo
from onesteptrain.jobs.pipeline import Pipeline, run_pipeline
from onesteptrain.reporting.comparison import comparison_table, write_comparison
from onesteptrain.reporting.figures import need_matplotlib


@dataclass(frozen=True)
class Run:
    """Do all steps from one YAML file; what is done already is not done again.

    The keys of the file are the options below, nested at each point: `--score.step-size` is the key `step_size` under
    `score`. Those on the command line win over the file. `ost init` writes a file to begin with.

    Example: `ost run job.yaml --dry-run`
    """

    file: Path
    """The YAML file, or the config.yaml of an earlier run; paths in it start from the working directory."""

    _: KW_ONLY

    job: Annotated[Pipeline, panel("Keys of the file", 1)]
    output: Annotated[Output, OUTPUT] = Output()

    def __call__(self) -> None:
        """Do what is not done yet."""
        facts = run_pipeline(self.job, overwrite=self.output.overwrite, tell=tell)
        say(f"done: {self.job.out}", facts, as_json=self.output.json, then=["advise", self.job.out])


@dataclass(frozen=True)
class Compare:
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

    output: Annotated[Output, OUTPUT] = Output()

    def __call__(self) -> None:
        """Train and measure what is not measured yet."""
        job = read_comparison(self.file, out=self.out, seeds=self.seeds)
        need_matplotlib()
        done = compare(job, workers=self.workers, overwrite=self.output.overwrite, tell=tell)
        written = write_comparison(done.records, done.differences, job.out)
        text = comparison_table(done.records, done.differences) + "\n\n" + "\n".join(map(str, written))
        say(text, {"results": done.records, "differences": done.differences}, as_json=self.output.json)


@dataclass(frozen=True)
class Demo:
    """Take the built-in digits world through everything, in a few minutes on a laptop.

    Example: `ost demo --out ost-demo`
    """

    _: KW_ONLY

    out: Path = Path("ost-demo")
    """New folder for all that is made."""

    options: Annotated[DemoOptions, HOW] = DemoOptions()
    output: Annotated[Output, OUTPUT] = Output()

    def __call__(self) -> None:
        """Run it; people see the table in any case."""
        results = run_demo(
            self.out, self.options, overwrite=self.output.overwrite, tell=tell if self.output.json else print
        )
        if self.output.json:
            say("", {"results": results}, as_json=True)
        else:
            tell("next: ost init POOL --heldout HELDOUT --proxy MODEL")
