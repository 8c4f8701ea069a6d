"""`ost explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from cyclopts import Parameter

from onesteptrain.cli.output import say
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.reporting.diagnosis import RULE, ExplainOptions, Explanation
from onesteptrain.reporting.diagnosis import explain as explain_table
from onesteptrain.storage.score_table import ScoreTable, read_scores, write_table

_QUOTED = 60
"""Characters of a quotation."""


def explain(
    run: Path,
    *,
    options: Annotated[ExplainOptions, Parameter(name="*")] = ExplainOptions(),
    rows: int = 10,
    out: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Say of the harmful rows where the harm sits and what is likely wrong, and what the score goes by.

    Args:
        run: Run directory of `ost score --store-tokens`, better with --ablate too.
        options: What is looked at.
        rows: Harmful rows to print, the worst first.
        out: Parquet file with a line for each row; by default RUN/explanations.parquet, which is replaced.
        overwrite: Replace an existing --out.
        json: Print the result as JSON.
    """
    out = _checked(run, out, overwrite)
    table = read_scores(run)
    found = explain_table(table, options=options)
    write_table(found.table(), out)
    if found.corrected is not None:
        _add_column(table, "corrected", found)
    say(describe(found, options, rows, out), facts(found, options, rows, out), as_json=json)


def describe(found: Explanation, options: ExplainOptions, rows: int, out: Path) -> str:
    """What was found, for people."""
    lines = [f"{len(found.rows)} of {len(found.uids)} rows look harmful: {RULE}"]
    counts = [f"{cause} {count}" for cause, count in found.cause_counts().items() if count]
    lines += [f"likely causes: {', '.join(counts)}"] if counts else []
    lines += [_row_line(found, place) for place in range(min(rows, len(found.rows)))]
    if found.blind is None:
        lines.append("no picture was judged, so that image_mismatch is never named; score again with --ablate")
    elif found.blind_share is not None:
        lines.append(f"{found.blind_share:.1%} of the other rows with pictures do not need them (blind)")
    lines += [f"what {options.by} goes by (* at least a medium effect):"] if found.bias else []
    lines += [f"  {one.column:<20} {one.measure:<11} {one.size:+.2f}{' *' * one.notable}" for one in found.bias]
    if found.corrected is not None:
        lines.append(f"{options.by} without {', '.join(options.correct)}: column `corrected`, for `ost select --by`")
    return "\n".join([*lines, f"explanations: {out}"])


def facts(found: Explanation, options: ExplainOptions, rows: int, out: Path) -> dict[str, Any]:
    """What was found, as plain values."""
    return {
        "rows": len(found.uids),
        "harmful": len(found.rows),
        "rule": RULE,
        "causes": found.cause_counts(),
        "blind_share": found.blind_share,
        "worst": [_row_facts(found, place) for place in range(min(rows, len(found.rows)))],
        "by": options.by,
        "bias": [one._asdict() for one in found.bias],
        "corrected_for": list(options.correct),
        "out": str(out),
    }


def _row_facts(found: Explanation, place: int) -> dict[str, Any]:
    row, quote = int(found.rows[place]), found.quotes[place]
    return {
        "row": row,
        "uid": found.uids[row],
        "utility": float(found.utility[place]),
        "span_start": quote.start,
        "span_end": quote.end,
        "span_text": quote.text,
        "cause": found.causes.named[place],
        "confidence": float(found.causes.confidence[place]),
    }


def _row_line(found: Explanation, place: int) -> str:
    one = _row_facts(found, place)
    text = one["span_text"]
    what = "a place that cannot be found" if text is None else repr(text[:_QUOTED]) if text else "the end of the answer"
    where = "" if one["span_start"] is None else f" at {one['span_start']}"
    cause = f"{one['cause']} ({one['confidence']:.2f})"
    return f"  row {one['row']:<7} utility {one['utility']:+.2e}  {cause:<22} {what}{where}"


def _checked(run: Path, out: Path | None, overwrite: bool) -> Path:
    if out is None:
        return run / "explanations.parquet"
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ConfigError(f"output {out} cannot be a file there; give a file name such as explanations.parquet")
    if out.exists() and not overwrite:
        raise RunError(f"output {out} exists; give another path, or add --overwrite")
    return out


def _add_column(table: ScoreTable, name: str, found: Explanation) -> None:
    """Put a column into the score table, in place of one of that name."""
    columns = table.read([one for one in table.names if one != name])
    write_table(columns.append_column(name, pa.array(found.corrected, from_pandas=True)), table.path)
