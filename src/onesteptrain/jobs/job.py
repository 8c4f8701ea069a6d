"""All steps of the main job from one request: what `ost run` does with a YAML file.

Each step leaves files in the run directory, and a step whose files are there is not done again: an interrupted run
continues where it stopped, and budgets added to `keep` are selected from the scores that are there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onesteptrain.data.pool import Pool
from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import EvaluateOptions
from onesteptrain.jobs.assembling import flat, job_from_plain
from onesteptrain.jobs.reading import read_yaml, with_overrides
from onesteptrain.jobs.recipe import Bench, Places, Recipe, Scored
from onesteptrain.jobs.reweighting import Harmful, options_of, selecting
from onesteptrain.jobs.steps import Tell
from onesteptrain.jobs.targets import Learned, TargetBench, Targets
from onesteptrain.methods.one_step import OneStep
from onesteptrain.reporting import ReportOptions, write_report
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.atomic import write_json
from onesteptrain.storage.fingerprints import fingerprint
from onesteptrain.storage.run_directory import Run, begin_run
from onesteptrain.training import FinetuneOptions

RESULTS = "results.json"
_INCIDENTAL = {"run keep", *(f"run scoring {name}" for name in ("chunk_rows", "readers", "max_failed_share"))}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The main job: scores by a recipe, subsets, and if asked for trained targets and their accuracy."""

    recipe: Recipe
    """Pool, anchors and proxy; in a file, its keys stand beside the others."""

    out: Path
    """Run directory."""

    score: OneStep = field(default_factory=OneStep)
    """How samples are scored."""

    second_pass: bool = True
    """Measure the losses again with a proxy that has learned from rows that pass the trust gate, for a better gate;
    where the selection goes by that gate and the proxy is warmed up."""

    select: SelectOptions = field(default_factory=SelectOptions)
    """What is dropped, and which of the other rows are preferred."""

    harmful: Harmful = "drop"
    """What becomes of rows that the trust gate drops: drop leaves them out; mask keeps them, with their harmful tokens
    out of the target's loss; weigh keeps them, each row counting by its probability to be clean; drop-and-mask leaves
    them out and masks tokens of the others. Nothing was seen to be better than drop (experiments/masking)."""

    keep: tuple[str, ...] = ("20%",)
    """Budgets: one subset file for each; more of them may be added later."""

    target: str | None = None
    """Checkpoint to fine-tune on each subset."""

    train: FinetuneOptions = field(default_factory=FinetuneOptions)
    """How the target is trained."""

    benchmark: Path | None = None
    """Questions with an answer column, to measure the trained targets on."""

    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    """How answers are generated and grouped."""

    def __post_init__(self) -> None:
        if self.recipe.anchors is None and self.recipe.heldout is None:
            raise ConfigError("give either anchors (a file to use) or heldout (a file to draw them from)")
        if self.recipe.proxy is None:
            raise ConfigError("proxy is missing; give a checkpoint folder or hub name")
        if not self.keep:
            raise ConfigError("keep is empty; give at least one budget such as 20%")
        selecting(self.select, self.harmful)
        if self.benchmark is not None and self.target is None:
            raise ConfigError("benchmark is given but no target; name the model to train and measure")

    @property
    def passes_twice(self) -> bool:
        """Whether a second pass is taken where the scores allow it."""
        return self.second_pass and self.recipe.warmup_share > 0 and self.select.trusting


def read_job(file: Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job from YAML; paths in it start from the working directory.

    Args:
        file: The YAML file, or the config.yaml of an earlier run.
        overrides: Options that win over the file's, as on a command line: `["--score.step-size", "1e-4"]`.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    needed = "give a YAML file with at least pool, proxy, out and anchors or heldout"
    values = read_yaml(file, needed, section="run")
    return job_from_plain(Job, with_overrides(values, overrides), where=str(file))


def run_job(job: Job, *, overwrite: bool = False, tell: Tell = lambda text: None) -> dict[str, Any]:
    """Do all steps that are not done yet.

    Args:
        job: What to do.
        overwrite: Delete what an earlier run has made in the same directory.
        tell: Told in a line what each step has done.

    Returns:
        What came out, as plain values; also in OUT/results.json, with the budgets of earlier calls.

    Raises:
        ConfigError: the job cannot work; said before any work.
        RunError: the directory holds a job that differs in more than its budgets.
    """
    from onesteptrain.jobs.planning import check_job

    recipe = job.recipe
    pool = recipe.pool_reading.open_checked(recipe.pool, tell)
    check_job(job, pool)
    files = {"proxy": recipe.proxy, "anchors": recipe.anchors, "heldout": recipe.heldout, "benchmark": job.benchmark}
    inputs = {"pool": pool.fingerprint} | {name: fingerprint(path) for name, path in files.items() if path is not None}
    config = {"run": flat(job)}
    with begin_run(job.out, config, inputs, overwrite=overwrite, incidental=_INCIDENTAL) as run:
        scored = Bench(recipe, pool, Places(job.out), tell).score("one_step", job.score, second_pass=job.passes_twice)
        before = _before(job)
        subsets = {keep: _subset(job, pool, scored, keep, before, tell) for keep in job.keep}
        targets = _targets(job, pool, subsets, scored.run, before, tell)
        report = write_report(
            scored.table,
            job.out / "report.html",
            options=ReportOptions(kind=job.select.kind),
            results=targets.records(),
            overwrite=True,
        )
        tell(f"report: {report}")
        facts = {
            "rows": scored.table.rows,
            "failed": scored.table.rows - scored.table.scored,
            "scores": str(scored.table.path),
            "subsets": {**before.get("subsets", {}), **{keep: str(path) for keep, path in subsets.items()}},
            **targets.facts(),
            "report": str(report),
        }
        write_json(job.out / RESULTS, facts)
        _remember(run, job.keep)
    return facts


def _before(job: Job) -> dict[str, Any]:
    """What earlier calls have made."""
    file = job.out / RESULTS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _remember(run: Run, keep: Sequence[str]) -> None:
    """Put new budgets into the record, so that it replays to all subsets."""
    config = run.config
    if new := [budget for budget in keep if budget not in config["run"]["keep"]]:
        config["run"]["keep"] += new
        run.ask(config)


def _named(keep: str) -> str:
    """A budget as a part of a file's name."""
    if keep.endswith("%"):
        return keep.removesuffix("%") + "percent"
    if keep.startswith(">="):
        return "from" + keep.removeprefix(">=").strip()
    return keep.replace(" ", "") if keep.strip()[-1:].isalpha() or "of" in keep else keep + "rows"


def _subset(job: Job, pool: Pool, scored: Scored, keep: str, before: dict[str, Any], tell: Tell) -> Path:
    out = job.out / f"subset-{_named(keep)}{pool.suffix}"
    if keep in before.get("subsets", {}) and out.exists():
        return out
    selection = select_rows(scored.table, keep=keep, options=selecting(job.select, job.harmful), pool=pool)
    selection.write(out, overwrite=True)
    tell(f"kept {len(selection)} of {selection.pool_rows} rows: {out}")
    return out


def _targets(
    job: Job, pool: Pool, subsets: dict[str, Path], scores: Path, before: dict[str, Any], tell: Tell
) -> Targets:
    """The target trained on each subset, if there is one; those of earlier calls too."""
    if job.target is None:
        if job.harmful != "drop":
            how = " ".join(f"--{option} {job.out}" for option in options_of(job.harmful))
            tell(f"subsets have the pool's rows as they are; train on them with {how}")
        return Targets(before.get("targets", {}), {}, [])
    learning = Learned(job.train, job.harmful, scores)
    bench = TargetBench(job.recipe, job.target, pool, learning, job.benchmark, job.evaluate, job.out, tell)
    return bench.targets(subsets, before.get("targets", {}))
