"""What an audit and a forecast say to people."""

from __future__ import annotations

from onesteptrain.cli.output import duration
from onesteptrain.scoring.audit import Audit, AuditOptions, trusted_step_size
from onesteptrain.scoring.forecast import Forecast

_GOOD = 0.99


def describe_forecast(expected: Forecast) -> str:
    """What scoring will take, for people."""
    lines = [
        f"{expected.rows} rows: about {duration(expected.seconds)} here "
        f"({duration(expected.seconds_low)} to {duration(expected.seconds_high)}), "
        f"{duration(expected.prepare_seconds)} of it to prepare, then {1 / expected.seconds_per_row:.1f} rows/s",
        f"memory: {expected.memory_bytes / 1e9:.1f} GB so far"
        + (f", {expected.device_memory_bytes / 1e9:.1f} GB on the GPU" if expected.device_memory_bytes else ""),
        f"disk: {expected.disk_bytes / 1e6:.1f} MB while shards are merged, half of that afterwards",
    ]
    if expected.failed:
        lines.append(f"{expected.failed} of {expected.tried} rows that were tried cannot be scored")
    return "\n".join(lines)


def describe_audit(result: Audit, options: AuditOptions) -> str:
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
