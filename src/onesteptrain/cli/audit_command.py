"""`ost audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import progress_bar, say
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, audit_facts, audit_into
from onesteptrain.jobs.steps import AnchorOptions, PoolOptions
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.scoring.audit import Audit, AuditOptions, trusted_step_size

Flat = Parameter(name="*")

_GOOD = 0.99


def audit(  # noqa: PLR0913  one parameter an option
    pool: Path,
    *,
    anchors: Path,
    proxy: str,
    out: Path,
    options: Annotated[AuditOptions, Flat] = AuditOptions(),
    method: Annotated[OneStep, Flat] = OneStep(),
    reading: Annotated[PoolOptions, Flat] = PoolOptions(),
    checking: Annotated[AnchorOptions, Flat] = AnchorOptions(),
    scope: Annotated[ScopeOptions, Flat] = ScopeOptions(),
    loading: Annotated[LoadOptions, Flat] = LoadOptions(),
    seed: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Take the exact step on a random part of the pool and compare it with the first-order score.

    Args:
        pool: The pool file or folder.
        anchors: Trusted samples that are not in the pool.
        proxy: Checkpoint folder or hub name, or the folder of `ost warmup`.
        out: JSON file for the result.
        options: What is compared.
        method: The estimator to audit.
        reading: How the pool is read.
        checking: How the anchors are checked.
        scope: Which parameters take the step.
        loading: How the proxy is loaded.
        seed: Of the draw.
        overwrite: Replace an existing file.
        json: Print the result as JSON.
    """
    request = ScoreRequest(
        reading.open(pool),
        method,
        anchors=anchors,
        anchor_reading=checking,
        proxy=ProxyOptions(proxy, scope, loading),
        seed=seed,
    )
    with progress_bar("exact steps", "steps") as progress:
        result = audit_into(out, request, options, overwrite=overwrite, progress=progress)
    say(describe(result, options), audit_facts(result, method, options), as_json=json)


def describe(result: Audit, options: AuditOptions) -> str:
    """The audit, for people."""
    level = f"{options.confidence:.0%} interval"
    lines = [
        f"{result.rows} rows, {result.estimator} against exact; {level} by bootstrap over rows",
        f"{'step size':>10}  {'rank correlation':^26}  {f'overlap of the top {options.top_share:.0%}':^26}  error",
    ]
    for row in result.sizes:
        rank, top = row.spearman, row.top_overlap
        lines.append(
            f"{row.step_size:>10.0e}  {f'{rank.value:.4f} ({rank.low:.4f} to {rank.high:.4f})':^26}  "
            f"{f'{top.value:.2f} ({top.low:.2f} to {top.high:.2f})':^26}  {row.relative_error:.1%}"
        )
    good = trusted_step_size(result.sizes, at_least=_GOOD)
    lines.append(
        f"the first-order score holds (rank correlation at least {_GOOD}) up to step size {good:.0e}"
        if good
        else f"no step size reaches rank correlation {_GOOD}; use --estimator exact, or a smaller step"
    )
    return "\n".join(lines)
