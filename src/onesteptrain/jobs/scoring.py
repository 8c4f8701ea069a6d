"""The steps of the main job that run a proxy: warm-up, scores, audit, forecast.

A `ScoreRequest` says what a pool is scored by. Whatever is asked of it, the record that a run directory keeps is the
same, and nested by who owns the options, so that none hides another of its name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onesteptrain.data.likeness import FINDINGS, compare, write_findings
from onesteptrain.data.pool import Pool, Sample
from onesteptrain.data.score_record import IN_MEMORY, refuse_flat
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.jobs.renewing import Asked
from onesteptrain.jobs.steps import AnchorOptions, Tell, plain, read_anchors
from onesteptrain.methods import Method, Scorer, Setting, essential_options
from onesteptrain.methods.one_step import NO_MOMENTS, OneStep
from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy, prefetching, readers
from onesteptrain.scoring.audit import Audit, AuditOptions, audit
from onesteptrain.scoring.engines import Rank, use_share
from onesteptrain.scoring.forecast import Forecast, forecast
from onesteptrain.scoring.options import INCIDENTAL, ScoringOptions
from onesteptrain.scoring.reuse import Kept, renew
from onesteptrain.scoring.score import Progress, ScoringResult, plan_work, score_pool
from onesteptrain.scoring.work import Expect, no_prefetch, score_share
from onesteptrain.storage.atomic import refuse_existing, write_json
from onesteptrain.storage.fingerprints import fingerprint, fingerprint_once, names_file
from onesteptrain.storage.learning_record import read_learning_record, write_learning
from onesteptrain.storage.phases import begin_phase
from onesteptrain.storage.run_directory import Run, join_run
from onesteptrain.training import WarmupOptions, warm_up
from onesteptrain.training.warmup import FACTS


@dataclass(frozen=True)
class ProxyOptions:
    """A proxy, and how it is loaded."""

    checkpoint: str
    """Checkpoint folder or hub name of a small vision-language model, or the folder of a warm-up."""

    scope: ScopeOptions = ScopeOptions()
    loading: LoadOptions = LoadOptions()

    @property
    def place(self) -> str | Path:
        """The folder where there is one, else the hub name."""
        return Path(self.checkpoint) if Path(self.checkpoint).exists() else self.checkpoint

    def load(self) -> Proxy:
        """Load it, at the weights after the warm-up if there was one."""
        begin_phase("loading the proxy")
        return load_proxy(locate_proxy(self.checkpoint)[0], self.scope, self.loading)


@dataclass(frozen=True)
class ScoreRequest:
    """What a pool is scored by."""

    pool: Pool
    method: Method
    """The method with its options."""

    name: str = "one_step"
    """What the method is called."""

    anchors: Path | Pool | Sequence[Sample] | None = None
    """Trusted samples; None for methods that use none."""

    anchor_reading: AnchorOptions = AnchorOptions()
    proxy: ProxyOptions | Proxy | None = None
    """None for methods that use none."""

    scoring: ScoringOptions = ScoringOptions()
    seed: int = 0
    """Fixes all that is random."""

    def __post_init__(self) -> None:
        check_moments(self.method, self.proxy)

    def read_anchors(self) -> tuple[list[Sample], Pool]:
        """The anchors, if there are to be some, after they were checked against the pool, and what is left of it."""
        if self.anchors is None:
            return [], self.pool
        begin_phase("reading the anchors")
        anchors, pool = read_anchors(self.anchors, self.pool, self.anchor_reading)
        return anchors, pool or self.pool

    def setting(self, anchors: Sequence[Sample]) -> Setting:
        """What the method works with; loads the proxy."""
        if not isinstance(self.proxy, ProxyOptions):
            return Setting(self.proxy, anchors, seed=self.seed)
        _, moments = locate_proxy(self.proxy.checkpoint)
        return Setting(self.proxy.load(), anchors, moments, self.seed, locate_checkpoints(self.proxy.checkpoint))

    def record(self) -> dict[str, Any]:
        """The request as plain values, each option under its owner."""
        proxy = self.proxy.place if isinstance(self.proxy, ProxyOptions) else self.proxy and IN_MEMORY
        loaded = self.proxy if isinstance(self.proxy, ProxyOptions) else ProxyOptions("")
        asked = {
            "pool": _on_record(self.pool),
            "pool_reading": self.pool.reading._asdict(),
            "anchors": None if self.anchors is None else _on_record(self.anchors),
            "anchor_reading": dataclasses.asdict(self.anchor_reading),
            "proxy": proxy,
            "method": {"name": self.name, "options": dataclasses.asdict(self.method)},  # type: ignore[call-overload]
            "scoring": dataclasses.asdict(self.scoring),
            "scope": dataclasses.asdict(loaded.scope),
            "loading": dataclasses.asdict(loaded.loading),
            "seed": self.seed,
        }
        return plain(asked)  # type: ignore[no-any-return]

    def inputs(self) -> dict[str, str]:
        """Fingerprint of each file that goes in."""
        inputs = {"pool": self.pool.fingerprint}
        if self.pool.left_out:
            inputs["excluded rows"] = hashlib.sha256(repr(sorted(self.pool.left_out)).encode()).hexdigest()
        if isinstance(self.anchors, Path):
            inputs["anchors"] = fingerprint(self.anchors)
        elif isinstance(self.anchors, Pool):
            inputs["anchors"] = self.anchors.fingerprint
        elif self.anchors is not None:
            inputs["anchors"] = hashlib.sha256(repr(list(self.anchors)).encode()).hexdigest()
        if self.proxy is not None:
            inputs["proxy"] = _proxy_fingerprint(self.proxy)
        named = {name: value for name, value in essential_options(self.method).items() if names_file(value)}
        return inputs | {name: fingerprint(value) for name, value in named.items()}

    def incidental(self) -> set[str]:
        """Options that no score depends on, as they are named in the record."""
        method = {f"score method options {name}" for name in vars(self.method).keys() - essential_options(self.method)}
        return method | {f"score scoring {name}" for name in INCIDENTAL}


def _on_record(rows: Path | Pool | Sequence[Sample]) -> Path | str:
    """Where rows are, if they are anywhere."""
    if isinstance(rows, Pool) and rows.source is None:
        return rows.path
    return rows if isinstance(rows, Path) else IN_MEMORY


def score_into(
    run_path: Path,
    request: ScoreRequest,
    *,
    overwrite: bool = False,
    reuse: Path | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> ScoringResult:
    """Score a pool into a run directory, continuing one that was interrupted.

    Where rows of the pool, or their pictures, have changed since, those are scored, and the scores of the others are
    taken over. Before, anchors and pool are compared; RUN/anchors.json keeps what was found, and `tell` is told of it.

    Args:
        run_path: The run directory.
        request: What the pool is scored by.
        overwrite: Delete an earlier run first, and score all rows.
        reuse: Another run directory with the same settings, whose scores are taken over for rows that it has.
        progress: Told how far the work is.
        tell: Told of anchors, and of scores that are taken over.

    Raises:
        AnchorError: an anchor stands in the pool, or cannot be used.
        RunError: the directory is in use for something else, or that of `reuse` has other settings.
    """
    anchors, pool = request.read_anchors()
    if not overwrite and (run_path / "config.yaml").is_file():
        refuse_flat(run_path, Run(run_path).config.get("score") or {"method": {}})
    asked = Asked.of({"score": request.record()}, request.inputs(), anchors, request.incidental())
    if reuse is not None:
        asked.refuse_other_settings(reuse)
    with asked.begin(run_path, overwrite=overwrite) as run:
        begin_phase("noting what the rows hold")
        asked.put_on_record(run)
        kept = renew(run, pool, asked.inputs, reuse=reuse)

        look = bool(anchors) and not (run.path / FINDINGS).is_file()
        if look:
            begin_phase("comparing anchors and pool")
        findings = compare(anchors, pool) if look else []
        if tell is not None:
            for finding in findings:
                tell(f"anchors: {finding.text}")

        taken = kept.count()
        if tell is not None and taken:
            tell(f"{taken} rows and their pictures are as they were when they were scored: their scores are taken over")
        at = _Preparation(request, anchors, kept, asked.inputs.get("proxy"))
        scored = score_pool(pool, at.prepare, run, request.scoring, progress, at.prefetch, at.facts)
        kept.delete()
        warmed = request.proxy.checkpoint if isinstance(request.proxy, ProxyOptions) else None
        if warmed is not None and (learning := read_learning_record(Path(warmed))) is not None:
            write_learning(learning, run.path)
        if look:
            write_findings(findings, run.path)
        run.record(rows=scored.rows, failed=scored.failed)
    return scored._replace(scored_now=scored.scored_now - taken, taken_over=taken)


def score_as_rank(run_path: Path, request: ScoreRequest, rank: Rank) -> None:
    """Score the share of a rank other than 0, which owns the run directory and joins the shards.

    Raises:
        AnchorError: an anchor stands in the pool, or cannot be used.
        RunError: the directory is in use for something else, or rank 0 does not begin.
    """
    anchors, pool = request.read_anchors()
    asked = Asked.of({"score": request.record()}, request.inputs(), anchors, request.incidental())
    run = join_run(run_path, asked.config, asked.inputs, incidental=asked.incidental)
    at = _Preparation(request, anchors, Kept(run.path), asked.inputs.get("proxy"))
    use_share(rank.local, rank.local_ranks)
    for _ in score_share(plan_work(pool, at.prepare, run, request.scoring, at.prefetch), rank.number, rank.ranks):
        pass


@dataclass
class _Preparation:
    """Makes the scorer of a request, in whichever process it is asked for one."""

    request: ScoreRequest
    anchors: Sequence[Sample]
    kept: Kept
    proxy_fingerprint: str | None
    """Of the proxy that the run began with."""

    @functools.cached_property
    def _setting(self) -> Setting:
        setting, proxy = self.request.setting(self.anchors), self.request.proxy
        if isinstance(proxy, ProxyOptions) and fingerprint_once(proxy.checkpoint) != self.proxy_fingerprint:
            raise RunError(f"proxy {proxy.checkpoint} has changed since the run began; put it back, or score anew")
        return setting

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.request.proxy, Proxy):
            raise TypeError("the proxy is a model in memory")
        return {name: value for name, value in vars(self).items() if name != "_setting"}

    def prepare(self) -> Scorer:
        return self.kept.prepare(lambda: self.request.method.prepare(self._setting))

    def prefetch(self, asked: int | None) -> AbstractContextManager[Expect]:
        return self.kept.prefetch(self._prefetch, asked)

    def _prefetch(self, asked: int | None) -> AbstractContextManager[Expect]:
        proxy = self._setting.proxy
        return no_prefetch(asked) if proxy is None else prefetching(proxy.encoder, readers(asked, proxy.device))

    def facts(self) -> dict[str, Any]:
        proxy = self._setting.proxy
        if proxy is None:
            return {}
        return {"device": str(proxy.device), "dtype": str(proxy.dtype), "scoped_parameters": len(proxy.parameters)}


def _proxy_fingerprint(proxy: ProxyOptions | Proxy) -> str:
    """Of the files of a checkpoint, or of weights in memory."""
    if isinstance(proxy, ProxyOptions):
        return fingerprint_once(proxy.checkpoint)
    total = hashlib.sha256()
    for name, weights in sorted(proxy.model.state_dict().items()):
        total.update(name.encode() + weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def forecast_scoring(request: ScoreRequest, *, rows: int = 80) -> Forecast:
    """Score a few rows of a pool and say what all of them will take; nothing is written.

    Raises:
        AnchorError: an anchor stands in the pool, or cannot be used.
        PoolError: the pool holds no row that can be read.
    """
    anchors, pool = request.read_anchors()
    return forecast(pool, lambda: request.method.prepare(request.setting(anchors)), rows=rows, seed=request.seed)


class Warmed(NamedTuple):
    """A proxy after its warm-up."""

    proxy: ProxyOptions
    seconds: float
    """What the warm-up took."""


def provide_proxy(  # noqa: PLR0913  a step from files to files, with what it may need
    out: Path,
    proxy: ProxyOptions,
    pool: Pool,
    options: WarmupOptions,
    tell: Tell,
    *,
    anchors: Path | None = None,
    anchor_reading: AnchorOptions = AnchorOptions(),
) -> Warmed:
    """Warm up a proxy into a folder, unless it is there; where anchors are given, say what it does to their loss."""
    if not out.exists():
        trusted, rest = read_anchors(anchors, pool, anchor_reading) if anchors is not None else ([], pool)
        result = warm_up(proxy.load(), rest or pool, options, out, anchors=trusted)
        tell(f"warmed up the proxy on {result.used} rows in {result.steps} steps: {out}")
    seconds = json.loads((out / FACTS).read_text(encoding="utf-8"))["seconds"]
    return Warmed(dataclasses.replace(proxy, checkpoint=str(out)), float(seconds))


def locate_proxy(proxy: str) -> tuple[str, Path | None]:
    """The checkpoint, and the second moments if the proxy is the folder of a warm-up."""
    moments = Path(proxy) / "second_moments.safetensors"
    return (str(Path(proxy) / "model"), moments) if moments.is_file() else (proxy, None)


def check_moments(method: Method, proxy: ProxyOptions | Proxy | str | None) -> None:
    """Refuse Adam's step without the second moments of a warm-up, before anything is read or loaded.

    Raises:
        ConfigError: the method asks for it, and the proxy has none.
    """
    place = proxy.checkpoint if isinstance(proxy, ProxyOptions) else proxy
    if not isinstance(method, OneStep) or method.optimizer != "adam" or place is None:
        return
    if not isinstance(place, str) or locate_proxy(place)[1] is None:
        raise ConfigError(NO_MOMENTS)


def locate_checkpoints(proxy: str) -> list[Path]:
    """The checkpoints in the folder of a warm-up, in the order of their steps; none if it kept none."""
    kept = [path for path in (Path(proxy) / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted(kept, key=lambda path: int(path.name))


def audit_into(
    out: Path,
    request: ScoreRequest,
    options: AuditOptions,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Audit the estimator of a request of method one_step on its pool, and keep the result as JSON.

    Raises:
        ConfigError: the method is another one.
        RunError: the output exists.
    """
    if not isinstance(request.method, OneStep):
        raise ConfigError(f"an audit compares estimators of method one_step, not {request.name}")
    refuse_existing(out, "audit.json", overwrite=overwrite)
    anchors, pool = request.read_anchors()
    result = audit(pool, request.method, request.setting(anchors), options, progress)
    write_json(out, audit_facts(result, request.method, options))
    return result


def audit_facts(result: Audit, method: OneStep, options: AuditOptions) -> dict[str, Any]:
    """An audit as plain values."""
    sizes = [
        {**row._asdict(), "spearman": row.spearman._asdict(), "top_overlap": row.top_overlap._asdict()}
        for row in result.sizes
    ]
    facts = {**result._asdict(), "sizes": sizes, "top_share": options.top_share, "confidence": options.confidence}
    return {name: plain(value) for name, value in {**facts, "method": dataclasses.asdict(method)}.items()}
