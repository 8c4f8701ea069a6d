"""All steps of the main job from one request: what `ost run` does with a YAML file.

Each step leaves files in the run directory, and a step whose files are there is not done again, so that an interrupted
run continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onesteptrain.data.pool import Pool
from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import EvaluateOptions, evaluate, read_benchmark, write_evaluation
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, provide_proxy, score_into
from onesteptrain.jobs.second_pass import FirstLook, look_again
from onesteptrain.jobs.steps import AnchorDraw, AnchorOptions, PoolOptions, Tell, plain, provide_anchors
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.reporting import write_report
from onesteptrain.scoring.score import ScoringOptions
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.options import Preference, QuotaShares  # noqa: F401  what reads options by their types looks here
from onesteptrain.storage.fingerprints import fingerprint
from onesteptrain.storage.run_directory import begin_run
from onesteptrain.storage.score_table import read_scores
from onesteptrain.training import FinetuneOptions, TrainOptions, WarmupOptions, train


@dataclass(frozen=True)
class Pipeline(SelectOptions):
    """The main job: anchors, warm-up, scores, subsets, and if asked for trained targets and their accuracy."""

    pool: Path
    """The pool file or folder."""

    proxy: str
    """Checkpoint folder or hub name of a small vision-language model."""

    out: Path
    """Run directory."""

    anchors: Path | None = None
    """Trusted samples that are not in the pool; or give heldout."""

    heldout: Path | None = None
    """Trusted samples that anchors are drawn from."""

    anchor_count: int = 100
    """How many anchors to draw from heldout."""

    anchor_by: tuple[str, ...] = ()
    """Columns to stratify the draw by, such as topic and level."""

    warmup_share: float = 0.05
    """Share of the pool that the proxy is warmed up on; 0 scores with the proxy as it is."""

    warmup: FinetuneOptions = field(default_factory=FinetuneOptions)
    """How the proxy is warmed up."""

    score: OneStep = field(default_factory=OneStep)
    """How samples are scored."""

    second_look: bool = True
    """Measure the losses again with a proxy that has learned from rows that pass the trust gate, for a better gate;
    where the selection goes by that gate and the proxy is warmed up."""

    keep: tuple[str, ...] = ("20%",)
    """Budgets: one subset file for each."""

    target: str | None = None
    """Checkpoint to fine-tune on each subset."""

    train: FinetuneOptions = field(default_factory=FinetuneOptions)
    """How the target is trained."""

    benchmark: Path | None = None
    """Questions with an answer column, to measure the trained targets on."""

    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    """How answers are generated and grouped."""

    reading: PoolOptions = field(default_factory=PoolOptions)
    """How the pool is read."""

    checking: AnchorOptions = field(default_factory=AnchorOptions)
    """How the anchors are checked."""

    scope: ScopeOptions = field(default_factory=ScopeOptions)
    """Which parameters of the proxy take the step."""

    loading: LoadOptions = field(default_factory=LoadOptions)
    """How models are loaded."""

    working: ScoringOptions = field(default_factory=ScoringOptions)
    """How the pool is worked through."""

    seed: int = 0
    """Fixes all that is random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.anchors is None) == (self.heldout is None):
            raise ConfigError("give either anchors (a file to use) or heldout (a file to draw them from)")
        if not self.keep:
            raise ConfigError("keep is empty; give at least one budget such as 20%")
        if self.benchmark is not None and self.target is None:
            raise ConfigError("benchmark is given but no target; name the model to train and measure")


def run_pipeline(job: Pipeline, *, overwrite: bool = False, tell: Tell = lambda text: None) -> dict[str, Any]:
    """Do all steps that are not done yet.

    Args:
        job: What to do.
        overwrite: Delete what an earlier run has made in the same directory.
        tell: Told in a line what each step has done.

    Returns:
        What came out, as plain values; also in OUT/results.json.
    """
    pool = job.reading.open(job.pool)
    request = {"run": plain(dataclasses.asdict(job))}
    inputs = {"pool": pool.fingerprint, "proxy": fingerprint(job.proxy)}
    inputs |= {name: fingerprint(path) for name in ("anchors", "heldout", "benchmark") if (path := getattr(job, name))}
    with begin_run(job.out, request, inputs, overwrite=overwrite) as run:
        anchors, checking = _anchors(job, pool, tell)
        proxy = _warm_proxy(job, pool, tell)
        scoring = ScoreRequest(
            pool,
            job.score,
            anchors=anchors,
            anchor_reading=checking,
            proxy=proxy,
            scoring=job.working,
            seed=job.seed,
        )
        scored = score_into(job.out / "score", scoring)
        tell(f"scored {scored.rows - scored.failed} of {scored.rows} rows: {scored.table.path}")
        chosen_by = _look_again(job, pool, (anchors, checking), tell)
        subsets = {keep: _subset(job, pool, chosen_by, keep, tell) for keep in job.keep}
        models = {keep: _trained(job, keep, path, tell) for keep, path in subsets.items()} if job.target else {}
        report = write_report(read_scores(chosen_by), job.out / "report.html", overwrite=True)
        tell(f"report: {report}")
        facts = {
            "rows": scored.rows,
            "failed": scored.failed,
            "scores": str(chosen_by / "scores.parquet"),
            "subsets": {keep: str(path) for keep, path in subsets.items()},
            "targets": models,
            "report": str(report),
        }
        run.record(results=facts)
    return facts


def _anchors(job: Pipeline, pool: Pool, tell: Tell) -> tuple[Path, AnchorOptions]:
    if job.heldout is None:
        return job.anchors or Path(), job.checking
    out = job.out / f"anchors{job.heldout.suffix}"
    draw = AnchorDraw(job.anchor_count, job.anchor_by, job.seed)
    return out, provide_anchors(out, pool, job.heldout, draw, job.checking, tell)


def _warm_proxy(job: Pipeline, pool: Pool, tell: Tell) -> ProxyOptions:
    proxy = ProxyOptions(job.proxy, job.scope, job.loading)
    if not job.warmup_share:
        return proxy
    return provide_proxy(job.out / "warmup", proxy, pool, _warmup(job), tell).proxy


def _warmup(job: Pipeline) -> WarmupOptions:
    return WarmupOptions(share=job.warmup_share, finetune=job.warmup)


def _look_again(job: Pipeline, pool: Pool, anchors: tuple[Path, AnchorOptions], tell: Tell) -> Path:
    """The run directory whose scores decide: that of a second look, if there is one."""
    first = job.out / "score"
    if not (job.second_look and job.warmup_share and job.rule().trusting):
        return first
    proxy = ProxyOptions(job.proxy, job.scope, job.loading)
    look = FirstLook(first, pool, anchors[0], proxy, job.out / "warmup", _warmup(job))
    second = look_again(look, job.out / "second", working=job.working, checking=anchors[1], seed=job.seed, tell=tell)
    return first if second is None else second.run


def _named(keep: str) -> str:
    """A budget as a part of a file's name."""
    if keep.endswith("%"):
        return keep.removesuffix("%") + "percent"
    if keep.startswith(">="):
        return "from" + keep.removeprefix(">=").strip()
    return keep.replace(" ", "") if keep.strip()[-1:].isalpha() or "of" in keep else keep + "rows"


def _subset(job: Pipeline, pool: Pool, chosen_by: Path, keep: str, tell: Tell) -> Path:
    out = job.out / f"subset-{_named(keep)}{pool.path.suffix}"
    selection = select_rows(read_scores(chosen_by), keep=keep, options=job.rule())
    selection.write(out, overwrite=True)
    tell(f"kept {len(selection)} of {selection.pool_rows} rows: {out}")
    return out


def _trained(job: Pipeline, keep: str, subset: Path, tell: Tell) -> dict[str, Any]:
    """Train the target on one subset, and measure it if there is a benchmark."""
    out = job.out / f"target-{subset.stem.removeprefix('subset-')}"
    reading = dataclasses.replace(job.reading, image_root=job.reading.image_root or job.pool.parent)
    if not out.exists():
        options = TrainOptions(finetune=job.train, load=job.loading)
        result = train(str(job.target), reading.open(subset), options, out)
        tell(f"trained the target on {result.rows} rows in {result.steps} steps: {out}")
    facts: dict[str, Any] = {"checkpoint": str(out)}
    if job.benchmark is None:
        return facts
    answers = job.out / f"answers-{out.name.removeprefix('target-')}"
    if not answers.exists():
        evaluation = evaluate(out, read_benchmark(job.benchmark), job.evaluate, load=job.loading)
        write_evaluation(evaluation, answers)
    summary = json.loads((answers / "summary.json").read_text(encoding="utf-8"))
    tell(f"target trained on {keep}: accuracy {summary['accuracy']['value']:.1%}")
    return {**facts, "answers": str(answers), "accuracy": summary["accuracy"]}
