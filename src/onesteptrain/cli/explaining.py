"""`ost explain`: why rows look harmful."""

from __future__ import annotations

import math
import shutil
import textwrap
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from onesteptrain.cli.options import HOW, Writer
from onesteptrain.reporting.diagnosis import RULE, ExplainOptions, Explanation, explain
from onesteptrain.storage.atomic import refuse_existing
from onesteptrain.storage.intact import FILES, digests
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable, read_scores, write_table

_SPAN = 120
"""Characters of a span that are printed."""


@dataclass(frozen=True)
class Explain(Writer):
    """Say of the harmful rows where the harm sits and what is likely wrong, and what the score goes by.

    Example: `ost explain run`, where run was scored with --store-tokens, better with --ablate too
    """

    run: Path
    """Run directory of `ost score` or `ost run`, with the utility of every token."""

    _: KW_ONLY

    rows: int = 10
    """Harmful rows to print, the worst first."""

    out: Path | None = None
    """Parquet file with a line for each row; by default RUN/explanations.parquet, which is replaced."""

    options: Annotated[ExplainOptions, HOW] = ExplainOptions()

    def __call__(self) -> None:
        """Explain, write and name the worst rows."""
        out = self._checked_out()
        table = read_scores(self.run)
        explanation = explain(table, options=self.options)
        write_table(explanation.table(), out)
        if explanation.corrected is not None:
            _add_column(table, "corrected", explanation)
        text = describe_explanation(explanation, self.options, self.rows) + f"\nexplanations: {out}"
        facts = {**explanation_facts(explanation, self.options, self.rows), "out": str(out)}
        self.say(text, facts, ["report", self.run])

    def _checked_out(self) -> Path:
        if self.out is None:
            return self.run / "explanations.parquet"
        refuse_existing(self.out, "explain.parquet", overwrite=self.overwrite)
        return self.out


def describe_explanation(explanation: Explanation, options: ExplainOptions, rows: int) -> str:
    """What was found, for people."""
    lines = [f"{len(explanation.rows)} of {len(explanation.uids)} rows look harmful: {RULE}"]
    if explanation.verdict.blind:
        lines = [f"no row is called harmful: {explanation.verdict.sentences()[0]}"]
    lines += _causes(explanation)
    for place in range(min(rows, len(explanation.rows))):
        lines += _worst_row(explanation, place)
    if explanation.blind is None:
        lines.append("other pictures were not tried, so that fewer causes can be told; score again with --ablate")
    elif explanation.blind_share is not None:
        lines.append(f"{explanation.blind_share:.1%} of the other rows with pictures do not need them (blind)")
    lines += [f"what {options.by} goes by (* at least a medium effect):"] if explanation.bias else []
    lines += [f"  {row.column:<20} {row.measure:<11} {row.size:+.2f}{' *' * row.notable}" for row in explanation.bias]
    if explanation.corrected is not None:
        lines.append(f"{options.by} without {', '.join(options.correct)}: column `corrected`, for `ost select --by`")
    return "\n".join(lines)


def _causes(explanation: Explanation) -> list[str]:
    """How often each cause is named, and how sure that is."""
    if not len(explanation.rows):
        return []
    if math.isnan(explanation.causes.level):
        return ["no cause can be named: too few corrupted anchors were scored; score again with --corrupted 300"]
    counts = [f"{cause} {count}" for cause, count in explanation.cause_counts().items() if count]
    lines = [f"likely causes: {', '.join(counts)}"]
    if not math.isnan(explanation.causes.precision):
        level, precision = explanation.causes.level, explanation.causes.precision
        lines.append(f"named from probability {level:.2f}: right for {precision:.0%} of corrupted anchors named so")
    return lines


def explanation_facts(explanation: Explanation, options: ExplainOptions, rows: int) -> dict[str, Any]:
    """What was found, as plain values."""
    return {
        "rows": len(explanation.uids),
        "harmful": len(explanation.rows),
        "rule": RULE,
        "causes": explanation.cause_counts(),
        "cause_level": _number(explanation.causes.level),
        "cause_precision": _number(explanation.causes.precision),
        "verdict": explanation.verdict.facts(),
        "blind_share": explanation.blind_share,
        "worst": [_row_facts(explanation, place) for place in range(min(rows, len(explanation.rows)))],
        "by": options.by,
        "bias": [row._asdict() for row in explanation.bias],
        "corrected_for": list(options.correct),
    }


def _row_facts(explanation: Explanation, place: int) -> dict[str, Any]:
    row, quote = int(explanation.rows[place]), explanation.quotes[place]
    return {
        "row": row,
        "uid": explanation.uids[row],
        "utility": float(explanation.utility[place]),
        "span_start": quote.start,
        "span_end": quote.end,
        "span_text": quote.text,
        "cause": explanation.causes.named[place],
        "confidence": _number(float(explanation.causes.confidence[place])),
    }


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else value


def _worst_row(explanation: Explanation, place: int) -> list[str]:
    """A row with its question, and with its answer in which the span stands between `>>` and `<<`."""
    fact, quote = _row_facts(explanation, place), explanation.quotes[place]
    cause = fact["cause"] if fact["confidence"] is None else f"{fact['cause']} ({fact['confidence']:.2f})"
    lines = [f"  row {fact['row']:<7} utility {fact['utility']:+.2e}  {cause}"]
    if quote.question:
        lines += _paragraph("Q", quote.question)
    if quote.text is None:
        return [*lines, "    A: the place cannot be found in it"]
    span = quote.text if len(quote.text) <= _SPAN else f"{quote.text[: _SPAN // 2]} ... {quote.text[-_SPAN // 2 :]}"
    return lines + _paragraph("A", f"{quote.before}>>{span or 'the end of the answer'}<<{quote.after}")


def _paragraph(title: str, text: str) -> list[str]:
    """Printable text as wide as the terminal."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.wrap(printable, width, initial_indent=f"    {title}: ", subsequent_indent="       ")


def _add_column(table: ScoreTable, name: str, explanation: Explanation) -> None:
    """Put a column into the score table, in place of one of that name."""
    columns = table.read([column for column in table.names if column != name])
    write_table(columns.append_column(name, pa.array(explanation.corrected, from_pandas=True)), table.path)
    run = Run(table.path.parent)
    if files := run.provenance.get(FILES):
        run.record(**{FILES: {**files, **digests([table.path])}})
