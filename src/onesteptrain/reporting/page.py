"""Write the page: read the run, count, draw, and fill the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onesteptrain.data.score_record import IN_MEMORY, read_score_record
from onesteptrain.errors import ConfigError, ModelError, PoolError, ScoreError
from onesteptrain.evaluation.paired import as_difference
from onesteptrain.evaluation.worth import worth_sentences
from onesteptrain.reporting import figures
from onesteptrain.reporting.comparison import summarize_arms
from onesteptrain.reporting.counting import (
    Column,
    UtilityCurve,
    bin_by_length,
    count_reasons,
    read_audit,
    summarize,
    utility_curve,
)
from onesteptrain.reporting.decision import Cut, decide, find_cut
from onesteptrain.reporting.diagnosis.texts import recorded_quoter
from onesteptrain.reporting.examples import read_ends, read_groups
from onesteptrain.reporting.heat import LEGEND, STYLE
from onesteptrain.reporting.typeset import FILTERS, Scale, choose_scale
from onesteptrain.selection import default_rule, scored_pool
from onesteptrain.selection.advice import SHARES
from onesteptrain.selection.guidance import measure_guidance
from onesteptrain.selection.learning import measure_learning
from onesteptrain.storage.atomic import refuse_existing, write_text
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

    kind: tuple[str, ...] = ()
    """Columns of pool and anchors that say of which kind a row is; as for a selection."""

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
    table: ScoreTable,
    out: Path,
    *,
    options: ReportOptions | None = None,
    results: Sequence[Mapping[str, object]] | None = None,
    audit: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained HTML page about a scored pool; the same inputs give the same bytes.

    Args:
        table: Scores, in the run directory of `ost score`.
        out: The page; it appears whole or not at all.
        options: What the page shows.
        results: One mapping a training on a selection: method, share, rows, seed, accuracy in per cent, and where
            it is known the paired difference `against_untuned`.
        audit: What `ost audit` wrote.
        overwrite: Replace an existing page.

    Returns:
        Where the page is.

    Raises:
        RunError: the table stands in no run directory, or the page exists.
        ConfigError: `out`, `results` or `audit` cannot be used.
        PoolError: the pool is gone or has changed since; pages with 0 examples do not need it.
        MissingExtraError: matplotlib is not installed.
    """
    options = options or ReportOptions()
    _refuse_target(out, overwrite=overwrite)
    figures.need_matplotlib()
    run = table.path.parent
    record = read_score_record(run)
    facts = {
        "legend": LEGEND,
        "heat_style": STYLE,
        "title": "a pool in memory" if record.asked["pool"] == IN_MEMORY else Path(record.asked["pool"]).name,
        "asked": record.asked,
        "options": record.flat(),
        "provenance": Run(run).provenance,
        "arms": sorted(summarize_arms(results or ()), key=lambda arm: -arm.accuracy),
        "worth": _worth(results or ()),
        "audit": read_audit(audit) if audit is not None else None,
        **(found := _table_facts(table, options.kind)),
        **_ranking_facts(table, options, found["cut"]),
    }
    write_text(out, _render(facts))
    return out


def _refuse_target(out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):  # so that --overwrite never hits a pool or a table
        raise ConfigError(f"output {out} is no name for a page; give one that ends in .html")
    refuse_existing(out, "report.html", overwrite=overwrite)


def _worth(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of which trainings it is known that they were not worth it, or cannot be told."""
    return worth_sentences(
        {str(one["budget"]): as_difference(one["against_untuned"]) for one in results if one.get("against_untuned")}
    )


def _table_facts(table: ScoreTable, kind: tuple[str, ...]) -> dict[str, Any]:
    """What the table holds, and what the default rule of `ost select` keeps of it."""
    troubles = count_reasons(table)
    facts: dict[str, Any] = {
        "rows": table.rows,
        "scored": table.scored,
        "groups": _groups(table),
        "troubles": troubles[:_REASONS_SHOWN],
        "other_kinds": len(troubles[_REASONS_SHOWN:]),
        "has_tokens": "token_utility" in table.names,
    }
    try:
        rule = default_rule(table, kind)
    except ScoreError as error:
        return {
            **facts,
            "kept": [],
            "gate": "none",
            "verdict": [],
            "no_rule": str(error),
            "decision": None,
            "cut": None,
            "cut_figure": None,
        }
    kept = [(share, rule.figures(share)) for share in SHARES]
    trust = rule.gated.trust
    said = [trust and trust.verdict, measure_guidance(table, "score"), measure_learning(table)]
    verdict = [sentence for part in said if part is not None for sentence in part.sentences()]
    facts |= {"kept": kept, "gate": rule.gated.gate, "verdict": verdict, "no_rule": ""}
    cut = find_cut(rule)
    figure = None if cut is None else figures.cut_histogram(cut.kept, cut.dropped, cut.anchors)
    return {**facts, "decision": decide(rule), "cut": cut, "cut_figure": figure}


def _ranking_facts(table: ScoreTable, options: ReportOptions, cut: Cut | None) -> dict[str, Any]:
    """The ranking: its numbers, its figures, and the pool rows at its two ends."""
    score, ranked = table.numbers("score"), "utility" if "utility" in table.names else "score"
    values = np.where(np.isfinite(score), table.numbers(ranked), np.nan)
    scale = choose_scale(values, _PLAIN_UNIT if ranked == "utility" else "")
    curve = utility_curve(score, values) if ranked == "utility" else None
    columns = [name for name in (ranked, *_SIGNALS[1:]) if name in table.names]
    scales = {name: scale if name in (ranked, *_SCALED) else Scale(0, _PLAIN_UNIT) for name in columns}
    summaries = (summarize(name, table.numbers(name)) for name in columns)
    return {
        "ranked": ranked,
        "scale": scale,
        "scales": scales,
        "units": _units(scales),
        "summaries": [summary for summary in summaries if summary is not None],
        "any_positive": curve is not None,
        "figures": _draw(table, values, ranked, scale, curve),
        **_shown_rows(table, values, cut, columns, options.examples),
    }


def _shown_rows(
    table: ScoreTable, values: Column, cut: Cut | None, columns: Sequence[str], examples: int
) -> dict[str, Any]:
    """Rows around the decision where there is one, else the two ends of the ranking."""
    if not examples:
        return {"ends": None, "groups_shown": [], "colored": False}
    try:
        pool = scored_pool(table)
    except PoolError as error:
        raise PoolError(f"{error}, or add --examples 0") from error
    if cut is None:
        return {"ends": read_ends(table, pool, values, columns, examples), "groups_shown": [], "colored": False}
    quote = None
    if "token_utility" in table.names:
        with suppress(ModelError):  # the proxy is gone: answers are shown without colours
            quote = recorded_quoter(table)
    shown = read_groups(table, pool, cut, columns, examples, quote)
    colored = any(passage.heat for group in shown for row in group.rows for passage in row.passages)
    return {"ends": None, "groups_shown": shown, "colored": colored}


def _units(scales: Mapping[str, Scale]) -> str:
    """Which signal is in which unit, in words; empty where no unit is known."""
    names: dict[str, list[str]] = {}
    for name, scale in scales.items():
        names.setdefault(scale.label, []).append(name)
    return "; ".join(f"{', '.join(named)} in {label}" for label, named in names.items() if label)


def _groups(table: ScoreTable) -> list[Any]:
    names = [name for name in table.names if name.startswith("utility.")]
    summaries = (summarize(name.removeprefix("utility."), table.numbers(name)) for name in names)
    return [summary for summary in summaries if summary is not None]


def _draw(table: ScoreTable, values: Column, ranked: str, scale: Scale, curve: UtilityCurve | None) -> list[Figure]:
    if not np.isfinite(values).any():
        return []
    drawn = [Figure("ranked", figures.histogram(values, name=ranked, scale=scale))]
    if "harm" in table.names and np.isfinite(harm := table.numbers("harm")).any():
        drawn.append(Figure("harm", figures.histogram(harm, name="harm", scale=scale)))
    if curve is not None:
        drawn.append(Figure("kept", figures.kept_curve(curve)))
    if "answer_tokens" in table.names and (bins := bin_by_length(table.numbers("answer_tokens"), values)):
        drawn.append(Figure("length", figures.length_plot(bins, name=ranked, scale=scale), bins.spearman))
    return drawn


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
