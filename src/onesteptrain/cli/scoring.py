"""`ost warmup`, `ost score` and `ost audit`."""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from cyclopts import Parameter

from onesteptrain.cli.describing import describe_audit, describe_forecast
from onesteptrain.cli.options import FILES, HOW, MODEL, WORK, ModelRunner, panel
from onesteptrain.cli.output import duration, tell
from onesteptrain.data.pool import Sample
from onesteptrain.errors import ConfigError
from onesteptrain.jobs.progress import forecasting, progress_bar
from onesteptrain.jobs.scoring import (
    ProxyOptions,
    ScoreRequest,
    audit_facts,
    audit_into,
    check_moments,
    forecast_scoring,
    score_as_rank,
    score_into,
)
from onesteptrain.jobs.steps import AnchorOptions, PoolOptions, read_anchors
from onesteptrain.methods import method_class
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.scoring.audit import AuditOptions
from onesteptrain.scoring.engines import rank_here
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.score import ScoringResult
from onesteptrain.selection.guidance import Guidance, measure_guidance
from onesteptrain.selection.learning import Learning, measure_learning
from onesteptrain.selection.likeness import find_unlike
from onesteptrain.selection.trust import can_trust, measure_trust
from onesteptrain.selection.verdict import Verdict
from onesteptrain.training import FinetuneOptions, WarmupOptions, most_common, warm_up


@dataclass(frozen=True)
class Warmup(ModelRunner):
    """Fine-tune the proxy on a share of the pool and keep Adam's second moments.

    Example: `ost warmup pool.json --proxy OpenGVLab/InternVL3-1B-hf --out warm`
    """

    pool: Path
    """The pool file or folder."""

    _: KW_ONLY

    proxy: str
    """Checkpoint folder or hub name of a small vision-language model."""

    out: Path
    """Folder to write; give it as --proxy to `ost score`."""

    anchors: Path | None = None
    """Trusted samples that are not in the pool: what the training does to their loss is kept, so that `ost advise` can
    say whether training on the pool is worth it."""

    share: float = 0.05
    """Share of the pool to train on."""

    checkpoints: int = 0
    """States to keep on the way for --method less, evenly spaced, the last one at the end."""

    finetune: Annotated[FinetuneOptions, HOW] = FinetuneOptions()
    reading: Annotated[PoolOptions, FILES] = PoolOptions()
    anchor_reading: Annotated[AnchorOptions, FILES] = AnchorOptions()
    scope: Annotated[ScopeOptions, MODEL] = ScopeOptions()
    loading: Annotated[LoadOptions, MODEL] = LoadOptions()

    def __call__(self) -> None:
        """Train and say how the loss fell."""
        pool = self.reading.open_checked(self.pool, tell)
        anchors: list[Sample] = []
        if self.anchors is not None:
            anchors, rest = read_anchors(self.anchors, pool, self.anchor_reading)
            pool = rest or pool
        options = WarmupOptions(share=self.share, finetune=self.finetune, checkpoints=self.checkpoints)
        with progress_bar("warm-up", "steps") as progress:
            proxy = ProxyOptions(self.proxy, self.scope, self.loading).load()
            result = warm_up(
                proxy, pool, options, self.out, anchors=anchors, overwrite=self.overwrite, progress=progress
            )
        lines = [
            f"warmed up on {result.used} rows in {result.steps} steps and {result.seconds:.1f} s, "
            f"loss {result.losses[0]:.3f} to {result.losses[-1]:.3f}: {self.out}"
        ]
        lines += [f"  {count} rows left out: {reason}" for reason, count in most_common(result.refused)]
        facts = {"out": str(self.out), "rows": result.used, "steps": result.steps, "seconds": result.seconds}
        facts |= {"losses": result.losses, "refused": result.refused}
        then = ["score", self.pool, "--anchors", "ANCHORS", "--proxy", self.out, "--out", "run"]
        self.say("\n".join(lines), facts, then)


@dataclass(frozen=True)
class Score(ModelRunner):
    """Score every sample of a pool, continuing a run that was interrupted.

    Example: `ost score pool.json --anchors anchors.jsonl --proxy warm --out run`
    """

    pool: Path
    """The pool file or folder."""

    _: KW_ONLY

    out: Path
    """Run directory; the scores go to its scores.parquet."""

    anchors: Path | None = None
    """Trusted samples that are not in the pool."""

    proxy: str | None = None
    """Checkpoint folder or hub name of a small vision-language model, or the folder of `ost warmup`."""

    method: str = "one_step"
    """Installed method; its options follow (`ost methods` lists them)."""

    seed: int = 0
    """Fixes all that is random."""

    dry_run: bool = False
    """Score 80 rows, drawn at random, and say how long all of them will take with one worker and what memory and disk
    they need; nothing is written."""

    options: Any = None
    reading: Annotated[PoolOptions, FILES] = PoolOptions()
    anchor_reading: Annotated[AnchorOptions, FILES] = AnchorOptions()
    scope: Annotated[ScopeOptions, MODEL] = ScopeOptions()
    loading: Annotated[LoadOptions, MODEL] = LoadOptions()
    scoring: Annotated[ScoringOptions, WORK] = ScoringOptions()

    def __call__(self) -> None:
        """Score, or say what scoring will take."""
        check_moments(self.options, self.proxy)
        request = ScoreRequest(
            self.reading.open_checked(self.pool, tell),
            self.options,
            self.method,
            anchors=self.anchors,
            anchor_reading=self.anchor_reading,
            proxy=None if self.proxy is None else ProxyOptions(self.proxy, self.scope, self.loading),
            scoring=self.scoring,
            seed=self.seed,
        )
        if self._is_done_as_rank(request):
            return
        if self.dry_run:
            expected = forecast_scoring(request)
            self.say(describe_forecast(expected), expected._asdict())
            return
        with progress_bar("scoring") as progress:
            result = score_into(self.out, request, overwrite=self.overwrite, progress=progress, tell=tell)
        then = ["select", self.out, "--keep", "20%", "--out", f"subset{self.pool.suffix}"]
        verdict = measure_trust(result.table).verdict if can_trust(result.table) else None
        told = Told(verdict, measure_guidance(result.table, "score"), measure_learning(result.table))
        self.say(describe_scoring(result, told), scoring_facts(result, told), then)

    def _is_done_as_rank(self, request: ScoreRequest) -> bool:
        """Score the share of a rank other than 0, if this is one."""
        if self.scoring.engine != "ranks" or self.dry_run:
            return False
        if self.overwrite:
            raise ConfigError("ranks cannot overwrite, as one would delete what another writes; delete the run first")
        rank = rank_here()
        if rank.number:
            score_as_rank(self.out, request, rank)
            tell(f"rank {rank.number} of {rank.ranks} has scored its share; rank 0 makes {self.out}")
        return rank.number > 0


def score_command(method: str) -> type[Score]:
    """`ost score` with the options of one method among its own.

    Raises:
        ConfigError: no installed method has this name.
    """
    cls = _apart(method_class(method))
    options = Annotated[cls, panel(f"Options of method {method}", 1)]  # type: ignore[valid-type]
    parts = [
        ("method", str, field(default=method, kw_only=True)),
        ("options", options, field(default=cls(), kw_only=True)),
    ]
    return dataclasses.make_dataclass("Score", parts, bases=(Score,), frozen=True, namespace={"__doc__": Score.__doc__})


def _apart(method: type[Any]) -> type[Any]:
    """A method whose options of the command's own names, such as a seed, are spelled --method-NAME."""
    own, types = {option.name for option in dataclasses.fields(Score)}, get_type_hints(method, include_extras=True)
    parts = [
        (
            option.name,
            Annotated[types[option.name], Parameter(name=f"--method-{option.name}".replace("_", "-"))],
            option,
        )
        for option in dataclasses.fields(method)
        if option.name in own
    ]
    if not parts:
        return method
    facts = {"__doc__": method.__doc__, "__module__": method.__module__}
    return dataclasses.make_dataclass(method.__name__, parts, bases=(method,), frozen=True, namespace=facts)


@dataclass(frozen=True)
class Audit(ModelRunner):
    """Take the exact step on a random part of the pool and compare it with the first-order score.

    Example: `ost audit pool.json --anchors anchors.jsonl --proxy warm --out audit.json`
    """

    pool: Path
    """The pool file or folder."""

    _: KW_ONLY

    anchors: Path
    """Trusted samples that are not in the pool."""

    proxy: str
    """Checkpoint folder or hub name, or the folder of `ost warmup`."""

    out: Path
    """JSON file for the result."""

    seed: int = 0
    """Of the draw."""

    options: Annotated[AuditOptions, panel("What is compared", 1)] = AuditOptions()
    method: Annotated[OneStep, panel("Options of method one_step", 1)] = OneStep()
    reading: Annotated[PoolOptions, FILES] = PoolOptions()
    anchor_reading: Annotated[AnchorOptions, FILES] = AnchorOptions()
    scope: Annotated[ScopeOptions, MODEL] = ScopeOptions()
    loading: Annotated[LoadOptions, MODEL] = LoadOptions()

    def __call__(self) -> None:
        """Compare and say up to which step size the two agree."""
        check_moments(self.method, self.proxy)
        request = ScoreRequest(
            self.reading.open_checked(self.pool, tell),
            self.method,
            anchors=self.anchors,
            anchor_reading=self.anchor_reading,
            proxy=ProxyOptions(self.proxy, self.scope, self.loading),
            seed=self.seed,
        )
        with progress_bar("exact steps", "steps") as progress:
            told = forecasting(progress, lambda seconds: tell(f"all exact steps will take about {duration(seconds)}"))
            result = audit_into(self.out, request, self.options, overwrite=self.overwrite, progress=told)
        facts = audit_facts(result, self.method, self.options)
        then = ["score", self.pool, "--anchors", self.anchors, "--proxy", self.proxy, "--out", "run"]
        self.say(describe_audit(result, self.options), facts, then)


class Told(NamedTuple):
    """What anchors and their corrupted copies say of the scores; None where they say nothing."""

    verdict: Verdict | None
    guidance: Guidance | None
    learning: Learning | None


def describe_scoring(result: ScoringResult, told: Told) -> str:
    """What came out of scoring, for people."""
    rate = f", {result.scored_now / result.seconds:.1f} rows/s" if result.scored_now else ""
    taken = f", {result.taken_over} taken over" if result.taken_over else ""
    lines = [
        f"{result.rows - result.failed} of {result.rows} rows scored "
        f"({result.scored_now} now, in {result.seconds:.1f} s{rate}{taken}): {result.table.path}"
    ]
    if result.damaged:
        lines.append(f"{len(result.damaged)} damaged shards were scored again, such as {result.damaged[0]}")
    if result.failed:
        lines.append(f"{result.failed} rows have a reason in place of a score, such as:")
        lines += [f"  {count} x {reason}" for reason, count in result.reasons]
    lines += [sentence for part in told if part is not None for sentence in part.sentences()]
    lines += find_unlike(result.table) if told.verdict is None else ()
    return "\n".join(lines)


def scoring_facts(result: ScoringResult, told: Told) -> dict[str, Any]:
    """What came out of scoring, for machines."""
    return {
        "scores": str(result.table.path),
        "rows": result.rows,
        "failed": result.failed,
        "reasons": [{"reason": reason, "rows": count} for reason, count in result.reasons],
        "scored_now": result.scored_now,
        "taken_over": result.taken_over,
        "damaged_shards": result.damaged,
        **{name: part and part.facts() for name, part in told._asdict().items()},
        "unlike": find_unlike(result.table),
        "seconds": result.seconds,
    }
