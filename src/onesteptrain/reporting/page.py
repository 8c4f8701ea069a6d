"""Write the page: read the run, count, draw, and fill the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onesteptrain.data.pool import Pool
from onesteptrain.data.score_record import ScoreRecord, read_score_record
from onesteptrain.errors import ConfigError, PoolError, RunError
from onesteptrain.reporting import figures
from onesteptrain.reporting.counting import (
    Column,
    KeptUtility,
    bin_by_length,
    count_reasons,
    kept_utility,
    summarize,
)
from onesteptrain.reporting.evidence import read_audit, summarize_results
from onesteptrain.reporting.examples import read_ends
from onesteptrain.reporting.typeset import FILTERS, Scale, choose_scale
from onesteptrain.storage.atomic import write_text
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable

_SIGNALS = ("utility", "harm", "gain", "loss")
_SCALED = ("utility", "harm", "gain")
"""Signals that share one power of ten; losses are far larger."""

_PLAIN_UNIT = "nats per token"
_REASONS_SHOWN = 30


@dataclass(frozen=True)
class ReportOptions:
    """What the page shows."""

    examples: int = 12
    """Rows to show from each end of the ranking; 0 writes the page without the pool file."""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ConfigError(f"examples is {self.examples}; give a number of rows, or 0 for none")


class Figure(NamedTuple):
    """A drawing, and which words of the template stand below it."""

    name: str
    svg: Markup
    spearman: float = float("nan")
    """Rank correlation of what is drawn, where the caption gives one."""


def write_report(
    run: Path,
    out: Path,
    *,
    options: ReportOptions | None = None,
    results: Sequence[Mapping[str, object]] | None = None,
    audit: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained HTML page about a scored pool; the same inputs give the same bytes.

    Args:
        run: Run directory of `ost score`.
        out: The page; it appears whole or not at all.
        options: What the page shows.
        results: One mapping a training on a selection: method, share, rows, seed, accuracy in per cent.
        audit: What `ost audit` wrote.
        overwrite: Replace an existing page.

    Returns:
        Where the page is.

    Raises:
        RunError: `run` is no run directory, or the page exists.
        ConfigError: the run holds no scores, or `out`, `results` or `audit` cannot be used.
        ScoreError: scoring is not finished.
        PoolError: the pool is gone or has changed since; pages with 0 examples do not need it.
        MissingExtraError: matplotlib is not installed.
    """
    options = options or ReportOptions()
    _refuse_target(out, overwrite=overwrite)
    figures.need_matplotlib()
    record = read_score_record(run)
    table = ScoreTable(run / "scores.parquet")
    facts = {
        "asked": record.asked,
        "options": record.flat(),
        "provenance": Run(run).provenance,
        "arms": summarize_results(results or ()),
        "audit": read_audit(audit) if audit is not None else None,
        **_table_facts(table, record, options),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, _render(facts))
    return out


def _refuse_target(out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):  # so that --overwrite never hits a pool or a table
        raise ConfigError(f"output {out} is no name for a page; give one that ends in .html")
    if out.is_dir():
        raise RunError(f"output {out} is a folder; give a file name such as report.html")
    if out.exists() and not overwrite:
        raise RunError(f"output {out} exists; choose another --out, or add --overwrite")


def _table_facts(table: ScoreTable, record: ScoreRecord, options: ReportOptions) -> dict[str, Any]:
    """All that the score table tells, and the pool rows at its two ends."""
    names = table.names
    score = table.numbers("score")
    ranked = "utility" if "utility" in names else "score"
    values = np.where(np.isfinite(score), table.numbers(ranked), np.nan)
    scale = choose_scale(values, _PLAIN_UNIT if ranked == "utility" else "")
    kept = kept_utility(score, values) if ranked == "utility" else None
    columns = [name for name in (ranked, *_SIGNALS[1:]) if name in names]
    scales = {name: scale if name in (ranked, *_SCALED) else Scale(0, _PLAIN_UNIT) for name in columns}
    pool = _open_pool(table, record) if options.examples else None
    return {
        "rows": table.rows,
        "scored": int(np.isfinite(score).sum()),
        "ranked": ranked,
        "scale": scale,
        "scales": scales,
        "units": _units(scales),
        "summaries": [found for name in columns if (found := summarize(name, table.numbers(name)))],
        "groups": _groups(table),
        "kept": kept,
        "figures": _draw(table, values, ranked, scale, kept),
        "troubles": (troubles := count_reasons(table))[:_REASONS_SHOWN],
        "other_kinds": len(troubles[_REASONS_SHOWN:]),
        "ends": read_ends(table, pool, values, columns, options.examples) if pool is not None else None,
        "has_tokens": "token_utility" in names,
    }


def _units(scales: Mapping[str, Scale]) -> str:
    """Which signal is in which unit, in words; empty where no unit is known."""
    names: dict[str, list[str]] = {}
    for name, scale in scales.items():
        names.setdefault(scale.label, []).append(name)
    return "; ".join(f"{', '.join(named)} in {label}" for label, named in names.items() if label)


def _groups(table: ScoreTable) -> list[Any]:
    names = [name for name in table.names if name.startswith("utility.")]
    found = (summarize(name.removeprefix("utility."), table.numbers(name)) for name in names)
    return [summary for summary in found if summary is not None]


def _draw(table: ScoreTable, values: Column, ranked: str, scale: Scale, kept: KeptUtility | None) -> list[Figure]:
    if not np.isfinite(values).any():
        return []
    drawn = [Figure("ranked", figures.histogram(values, name=ranked, scale=scale))]
    if "harm" in table.names and np.isfinite(harm := table.numbers("harm")).any():
        drawn.append(Figure("harm", figures.histogram(harm, name="harm", scale=scale)))
    if kept is not None:
        drawn.append(Figure("kept", figures.kept_curve(kept)))
    if "answer_tokens" in table.names and (bins := bin_by_length(table.numbers("answer_tokens"), values)):
        drawn.append(Figure("length", figures.length_plot(bins, name=ranked, scale=scale), bins.spearman))
    return drawn


def _open_pool(table: ScoreTable, record: ScoreRecord) -> Pool:
    try:
        pool = record.open_pool()
    except PoolError as error:
        raise PoolError(f"{error}, or add --examples 0") from error
    if table.metadata.get("pool", pool.fingerprint) != pool.fingerprint:
        raise PoolError(f"{pool.path} has changed since it was scored; score it again, or add --examples 0")
    return pool


def _render(facts: Mapping[str, Any]) -> str:
    pages = Environment(
        loader=PackageLoader("onesteptrain.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(FILTERS)
    return pages.get_template("report.html").render(facts) + "\n"
