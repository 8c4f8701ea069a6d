"""What stands beside the scores: results of training on selections, and the audit of the estimator."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onesteptrain.errors import ConfigError


class Arm(NamedTuple):
    """One method at one share, over its seeds."""

    method: str
    share: str
    """As text; empty where the result names none."""

    rows: float | None
    """Mean number of rows trained on."""

    seeds: int
    mean: float
    """Of the accuracy, in per cent, as are the three below."""

    spread: float | None
    """Standard deviation over seeds; None for one seed."""

    low: float
    high: float


class AuditLine(NamedTuple):
    """First-order against exact utility at one step size; each estimate is value, low, high."""

    step_size: float
    spearman: tuple[float, float, float]
    top_overlap: tuple[float, float, float]
    relative_error: float


class AuditFacts(NamedTuple):
    """An audit as the page shows it."""

    estimator: str
    rows: int
    failed: int
    top_share: float
    confidence: float
    lines: Sequence[AuditLine]


def summarize_results(results: Sequence[Mapping[str, object]]) -> list[Arm]:
    """Mean and spread of the accuracy over seeds, for each method and share, the most accurate first.

    Args:
        results: One mapping a training, with `method` and `accuracy` in per cent, and where it applies `share` (a
            number from 0 to 1, or text such as "20%"), `rows` and `seed`; other keys are left alone.

    Raises:
        ConfigError: a result lacks its method or accuracy.
    """
    arms: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for number, result in enumerate(results):
        accuracy, method = _number(result, number, "accuracy"), result.get("method")
        if accuracy is None or method is None:
            missing = "accuracy" if accuracy is None else "method"
            raise ConfigError(f"result {number} has no {missing}; each needs a method and an accuracy")
        arms.setdefault((str(method), _share(result, number)), []).append((accuracy, _number(result, number, "rows")))
    return sorted((_arm(*key, runs) for key, runs in arms.items()), key=lambda arm: -arm.mean)


def read_audit(audit: Mapping[str, Any]) -> AuditFacts:
    """Take an audit apart; a step size at which nothing could be measured is left out.

    Raises:
        ConfigError: it is not what `ost audit` writes.
    """
    try:
        lines = [
            AuditLine(
                float(size["step_size"]),
                _estimate(size["spearman"]),
                _estimate(size["top_overlap"]),
                float(size["relative_error"]),
            )
            for size in audit["sizes"]
            if None not in (*size["spearman"].values(), *size["top_overlap"].values(), size["relative_error"])
        ]
        counts = int(audit["rows"]), int(audit["failed"])
        return AuditFacts(str(audit["estimator"]), *counts, audit["top_share"], audit["confidence"], lines)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the audit cannot be read ({error!r}); give what `ost audit` writes") from error


def _estimate(estimate: Mapping[str, float]) -> tuple[float, float, float]:
    return float(estimate["value"]), float(estimate["low"]), float(estimate["high"])


def _arm(method: str, share: str, runs: Sequence[tuple[float, float | None]]) -> Arm:
    accuracies = [accuracy for accuracy, _ in runs]
    rows = [count for _, count in runs if count is not None]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    mean_rows = statistics.fmean(rows) if rows else None
    mean = statistics.fmean(accuracies)
    return Arm(method, share, mean_rows, len(runs), mean, spread, min(accuracies), max(accuracies))


def _share(result: Mapping[str, object], number: int) -> str:
    share = result.get("share")
    if isinstance(share, str):
        return share
    return "" if share is None else f"{100 * (_number(result, number, 'share') or 0.0):g}%"


def _number(result: Mapping[str, object], number: int, name: str) -> float | None:
    value = result.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"result {number} has the {name} {value!r}; give a finite number")
    return float(value)
