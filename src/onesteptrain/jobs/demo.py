"""The demo: built-in pictures of digits through every step, with targets trained on each subset side by side.

The same code runs as on real data and real checkpoints; what is small is the data. The planted labels are read in one
place only, to say in the table how many of the kept rows are clean.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onesteptrain.data.pool import open_pool
from onesteptrain.data.score_record import read_score_record
from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import EvaluateOptions
from onesteptrain.jobs.assembling import assemble
from onesteptrain.jobs.comparison import RANDOM, SET, TOP, Compared, Comparison, compare
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, audit_facts, audit_into
from onesteptrain.jobs.steps import Tell
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions
from onesteptrain.reporting import write_report
from onesteptrain.reporting.comparison import comparison_table, write_comparison
from onesteptrain.scoring.audit import AuditOptions
from onesteptrain.selection import select_rows
from onesteptrain.storage.atomic import refuse_taken, write_json
from onesteptrain.storage.ownership import delete_made, mark
from onesteptrain.storage.score_table import read_scores
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import FinetuneOptions

WARMUP = FinetuneOptions(epochs=10, batch_size=32, learning_rate=3e-4)
TARGET = FinetuneOptions(batch_size=32, learning_rate=2e-3)
BRIEF = FinetuneOptions(batch_size=16, learning_rate=5e-4)
"""Of the demo, which has to be short; both rates were chosen in experiments/digits_world."""
ANSWERS = EvaluateOptions(max_new_tokens=48, batch_size=200, by=("skill",))
_KIND = "a demo"
CHART_ANSWERS = dataclasses.replace(ANSWERS, max_new_tokens=96)


@dataclass(frozen=True)
class DemoOptions:
    """How large the demo is."""

    pool_rows: int = 1600
    """Rows of the pool, half of them bad."""

    benchmark_rows: int = 400
    """Questions that each target is measured on."""

    seeds: int = 3
    """Trained targets of each arm."""

    steps: int = 80
    """Optimizer steps of each target (Protocol B)."""

    shares: tuple[float, ...] = (0.2, 0.5)
    """Budgets of the subsets, as shares of the pool."""

    workers: int = 0
    """Targets that are trained at a time; 0 is one for each processor."""

    def __post_init__(self) -> None:
        if self.pool_rows < 400 or self.seeds < 1 or self.steps < 1:
            raise ConfigError("a demo needs at least 400 pool_rows, 1 of seeds and 1 of steps")


def run_demo(out: Path, options: DemoOptions, *, overwrite: bool = False, tell: Tell = print) -> list[dict[str, Any]]:
    """Take the built-in digits through every step.

    Args:
        out: New folder for all that is made.
        options: How large.
        overwrite: Delete what an earlier demo has made in the folder.
        tell: Told in a line what each step has done.

    Returns:
        One record an arm and seed; also in OUT/results.json.

    Raises:
        RunError: the folder is taken.
    """
    started = time.monotonic()
    _make_room(out, overwrite=overwrite)
    size = SyntheticOptions(pool_rows=options.pool_rows, benchmark_rows=options.benchmark_rows)
    data = make_synthetic("digits", size, out / "data")
    tell(f"pool: {options.pool_rows} rows, half of them bad in one of six ways: {data.pool}")
    done = compare(_comparison(data, out, options), workers=options.workers, tell=tell)
    write_json(out / "results.json", done.records)
    write_comparison(done.records, done.differences, out / "comparison")
    report = _explain(data, done, out, options, tell)
    tell("\n" + comparison_table(done.records, done.differences))
    tell(f"\nreport: {report}\nall of it in {time.monotonic() - started:.0f} s")
    return done.records


def digits_comparison(data: SyntheticData, out: Path, **changes: Any) -> Comparison:
    """A comparison on digits with their packaged models: the demo's, and the start of the experiments."""
    models = {"target": str(checkpoint("target")), "proxy": str(checkpoint("proxy"))}
    return assemble(Comparison, _settings(data, out) | models | {"evaluate": ANSWERS} | changes)


def charts_comparison(data: SyntheticData, out: Path, **changes: Any) -> Comparison:
    """A comparison on charts with their packaged models."""
    models = {"target": str(checkpoint("charts_target")), "proxy": str(checkpoint("charts_proxy"))}
    return assemble(Comparison, _settings(data, out) | models | {"evaluate": CHART_ANSWERS} | changes)


def mixed_comparison(data: SyntheticData, out: Path, **changes: Any) -> Comparison:
    """A comparison on the mixed data with their packaged models; anchors and figures go by source."""
    models = {"target": str(checkpoint("mixed_target")), "proxy": str(checkpoint("mixed_proxy"))}
    by = {"anchor_by": ("source", "skill"), "evaluate": dataclasses.replace(CHART_ANSWERS, by=("source",))}
    return assemble(Comparison, _settings(data, out) | models | by | changes)


def _settings(data: SyntheticData, out: Path) -> dict[str, Any]:
    """What the comparisons on synthetic data have in common."""
    return {
        "pool": data.pool,
        "heldout": data.heldout,
        "anchor_by": ("skill", "level"),
        "benchmark": data.benchmark,
        "truth": data.truth,
        "out": out,
        "warmup": WARMUP,
        "train": TARGET,
        "loading": LoadOptions(device="cpu"),
    }


def _comparison(data: SyntheticData, out: Path, options: DemoOptions) -> Comparison:
    return digits_comparison(
        data,
        out / "comparison",
        methods={"ost": TOP, "ost-set": SET, "random": RANDOM},
        shares=tuple(f"{100 * share:g}%" for share in options.shares),
        train=dataclasses.replace(BRIEF, steps=options.steps),
        seeds=options.seeds,
        references=("full", "random", "untuned"),
    )


def _explain(data: SyntheticData, done: Compared, out: Path, options: DemoOptions, tell: Tell) -> Path:
    """Subsets, audit and report of the scores."""
    run = done.scores["ost"]
    for share in options.shares:
        subset = out / f"subset-{100 * share:g}percent.jsonl"
        chosen = select_rows(read_scores(run), keep=f"{100 * share:g}%")
        chosen.write(subset)
        tell(f"selected {len(chosen)} rows: {subset}")
    record = read_score_record(run)
    method, auditing = OneStep(), AuditOptions(rows=40, step_sizes=(1e-4, 1e-3))
    request = ScoreRequest(
        open_pool(data.pool), method, anchors=record.open_anchors(), proxy=ProxyOptions(record.asked["proxy"])
    )
    audit = audit_into(out / "audit.json", request, auditing)
    lines = [f"rank correlation {row.spearman.value:.3f} at step {row.step_size:.0e}" for row in audit.sizes]
    tell(f"audit: first order against the exact step on {audit.rows} rows: {', '.join(lines)}")
    facts = audit_facts(audit, method, auditing)
    return write_report(read_scores(run), out / "report.html", results=done.records, audit=facts)


def _make_room(out: Path, *, overwrite: bool) -> None:
    refuse_taken(out, _KIND, overwrite=overwrite)
    delete_made(out)
    out.mkdir(parents=True, exist_ok=True)
    mark(out, _KIND)
