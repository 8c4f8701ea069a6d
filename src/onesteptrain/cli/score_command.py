"""`ost score`."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from onesteptrain.cli.output import progress_bar, say
from onesteptrain.methods import method_class
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.scoring import ScoringOptions, ScoringResult
from onesteptrain.steps import AnchorOptions, PoolOptions, score_into

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
        overwrite: Delete an earlier run in this directory first.
        json: Print the result as JSON.
    """
    with progress_bar("scoring") as progress:
        result = score_into(
            out,
            reading.open(pool),
            options if options is not None else method_class(method)(),
            anchors=anchors,
            proxy=proxy,
            seed=seed,
            options=working,
            anchor_options=checking,
            loading=(scope, loading),
            name=method,
            overwrite=overwrite,
            progress=progress,
        )
    say(describe(result), facts(result), as_json=json)


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
