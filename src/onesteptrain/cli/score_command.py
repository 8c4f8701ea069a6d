"""`ost score`."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from onesteptrain.cli.output import progress_bar, say
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, forecast_scoring, score_into
from onesteptrain.jobs.steps import AnchorOptions, PoolOptions
from onesteptrain.methods import method_class
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.scoring.forecast import Forecast
from onesteptrain.scoring.score import ScoringOptions, ScoringResult

Flat = Parameter(name="*")


def score(  # noqa: PLR0913  one parameter an option
    pool: Path,
    *,
    out: Path,
    anchors: Path | None = None,
    proxy: str | None = None,
    method: str = "one_step",
    options: Annotated[Any, Flat] = None,
    reading: Annotated[PoolOptions, Flat] = PoolOptions(),
    checking: Annotated[AnchorOptions, Flat] = AnchorOptions(),
    scope: Annotated[ScopeOptions, Flat] = ScopeOptions(),
    loading: Annotated[LoadOptions, Flat] = LoadOptions(),
    working: Annotated[ScoringOptions, Flat] = ScoringOptions(),
    seed: int = 0,
    dry_run: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Score every sample of a pool, continuing a run that was interrupted.

    Args:
        pool: The pool file or folder.
        out: Run directory; the scores go to its scores.parquet.
        anchors: Trusted samples that are not in the pool.
        proxy: Checkpoint folder or hub name of a small vision-language model, or the folder of `ost warmup`.
        method: Installed method; its options follow (`ost methods` lists them).
        options: Options of the method.
        reading: How the pool is read.
        checking: How the anchors are checked.
        scope: Which parameters take the step.
        loading: How the proxy is loaded.
        working: How the pool is worked through.
        seed: Fixes all that is random.
        dry_run: Score 80 rows, drawn at random, and say how long all of them will take and what memory and disk they
            need; nothing is written.
        overwrite: Delete an earlier run in this directory first.
        json: Print the result as JSON.
    """
    request = ScoreRequest(
        reading.open(pool),
        options if options is not None else method_class(method)(),
        method,
        anchors=anchors,
        anchor_reading=checking,
        proxy=None if proxy is None else ProxyOptions(proxy, scope, loading),
        scoring=working,
        seed=seed,
    )
    if dry_run:
        expected = forecast_scoring(request)
        say(describe_forecast(expected), expected._asdict(), as_json=json)
        return
    with progress_bar("scoring") as progress:
        result = score_into(out, request, overwrite=overwrite, progress=progress)
    say(describe(result), facts(result), as_json=json)


def describe_forecast(expected: Forecast) -> str:
    """What scoring will take, for people."""
    lines = [
        f"{expected.rows} rows: about {_duration(expected.seconds)} here "
        f"({_duration(expected.seconds_low)} to {_duration(expected.seconds_high)}), "
        f"{_duration(expected.prepare_seconds)} of it to prepare, then {1 / expected.seconds_per_row:.1f} rows/s",
        f"memory: {expected.memory_bytes / 1e9:.1f} GB so far"
        + (f", {expected.device_memory_bytes / 1e9:.1f} GB on the GPU" if expected.device_memory_bytes else ""),
        f"disk: {expected.disk_bytes / 1e6:.1f} MB while shards are merged, half of that afterwards",
    ]
    if expected.failed:
        lines.append(f"{expected.failed} of {expected.tried} rows that were tried cannot be scored")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def for_method(name: str) -> Callable[..., None]:
    """The command with the options of one method among its own.

    Raises:
        ConfigError: no installed method has this name.
    """
    cls = method_class(name)
    command = types.FunctionType(score.__code__, score.__globals__, score.__name__)
    command.__doc__ = score.__doc__
    command.__annotations__ = {**score.__annotations__, "options": Annotated[cls, Flat]}
    command.__kwdefaults__ = {**(score.__kwdefaults__ or {}), "options": cls()}
    return command


def describe(result: ScoringResult) -> str:
    """What came out, for people."""
    rate = f", {result.scored_now / result.seconds:.1f} rows/s" if result.scored_now else ""
    lines = [
        f"{result.rows - result.failed} of {result.rows} rows scored "
        f"({result.scored_now} now, in {result.seconds:.1f} s{rate}): {result.table.path}"
    ]
    if result.failed:
        lines.append(f"{result.failed} rows have a reason in place of a score, such as:")
        lines += [f"  {count} x {reason}" for reason, count in result.reasons]
    return "\n".join(lines)


def facts(result: ScoringResult) -> dict[str, Any]:
    """What came out, for machines."""
    return {
        "scores": str(result.table.path),
        "rows": result.rows,
        "failed": result.failed,
        "reasons": [{"reason": reason, "rows": count} for reason, count in result.reasons],
        "scored_now": result.scored_now,
        "seconds": result.seconds,
    }
