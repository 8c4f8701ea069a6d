"""`ost explain`: why rows look harmful."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from onesteptrain.cli.options import HOW, OUTPUT, Output
from onesteptrain.cli.output import say
from onesteptrain.data.pool import Pool, Sample
from onesteptrain.data.score_record import read_score_record
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.jobs.scoring import locate_proxy
from onesteptrain.reporting.diagnosis import RULE, ExplainOptions, Explanation
from onesteptrain.reporting.diagnosis import explain as explain_table
from onesteptrain.reporting.diagnosis.quoting import load_quoter
from onesteptrain.reporting.diagnosis.reading import Quote, answer_text
from onesteptrain.storage.score_table import ScoreTable, write_table

_ASKED = 300
"""Characters of a question that are printed."""

_AROUND = 100
"""Characters of an answer that are printed before and after a span, and of a long span."""


@dataclass(frozen=True)
class Explain:
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
    output: Annotated[Output, OUTPUT] = Output()

    def __call__(self) -> None:
        """Explain, write and name the worst rows."""
        out = self._checked_out()
        record = read_score_record(self.run)
        anchors, asked = record.open_anchors(), record.asked
        table, pool = ScoreTable(self.run / "scores.parquet"), record.open_pool()
        quote = load_quoter(locate_proxy(asked["proxy"])[0], trust_remote_code=asked["loading"]["trust_remote_code"])
        explanation = explain_table(table, pool, anchors, quote, self.options)
        write_table(explanation.table(), out)
        if explanation.corrected is not None:
            _add_column(table, "corrected", explanation)
        text = describe_explanation(explanation, pool, self.options, self.rows) + f"\nexplanations: {out}"
        facts = {**explanation_facts(explanation, self.options, self.rows), "out": str(out)}
        say(text, facts, as_json=self.output.json, then=["report", self.run])

    def _checked_out(self) -> Path:
        if self.out is None:
            return self.run / "explanations.parquet"
        if self.out.is_dir() or not self.out.absolute().parent.is_dir():
            raise ConfigError(f"output {self.out} cannot be a file there; give a file name such as explain.parquet")
        if self.out.exists() and not self.output.overwrite:
            raise RunError(f"output {self.out} exists; give another path, or add --overwrite")
        return self.out


def describe_explanation(explanation: Explanation, pool: Pool, options: ExplainOptions, rows: int) -> str:
    """What was found, for people."""
    lines = [f"{len(explanation.rows)} of {len(explanation.uids)} rows look harmful: {RULE}"]
    counts = [f"{cause} {count}" for cause, count in explanation.cause_counts().items() if count]
    lines += [f"likely causes: {', '.join(counts)}"] if counts else []
    lines += _worst_rows(explanation, pool, rows)
    if explanation.blind is None:
        lines.append("no picture was judged, so that image_mismatch is never named; score again with --ablate")
    elif explanation.blind_share is not None:
        lines.append(f"{explanation.blind_share:.1%} of the other rows with pictures do not need them (blind)")
    lines += [f"what {options.by} goes by (* at least a medium effect):"] if explanation.bias else []
    lines += [f"  {row.column:<20} {row.measure:<11} {row.size:+.2f}{' *' * row.notable}" for row in explanation.bias]
    if explanation.corrected is not None:
        lines.append(f"{options.by} without {', '.join(options.correct)}: column `corrected`, for `ost select --by`")
    return "\n".join(lines)


def explanation_facts(explanation: Explanation, options: ExplainOptions, rows: int) -> dict[str, Any]:
    """What was found, as plain values."""
    return {
        "rows": len(explanation.uids),
        "harmful": len(explanation.rows),
        "rule": RULE,
        "causes": explanation.cause_counts(),
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
        "confidence": float(explanation.causes.confidence[place]),
    }


def _worst_rows(explanation: Explanation, pool: Pool, rows: int) -> list[str]:
    """The worst rows with question and answer, in which the span is marked."""
    worst = explanation.rows[:rows].tolist()
    wanted = set(worst)
    texts = {sample.row: sample for sample in pool if sample.row in wanted} if worst else {}
    lines = []
    for place, row in enumerate(worst):
        fact, sample = _row_facts(explanation, place), texts[row]
        cause = f"{fact['cause']} ({fact['confidence']:.2f})"
        lines.append(f"  row {row:<7} utility {fact['utility']:+.2e}  {cause}")
        if isinstance(sample, Sample):
            asked = " ".join(turn.text for turn in sample.turns if turn.role == "user")
            lines += _wrapped("Q", _printable(asked[:_ASKED]) + " ..." * (len(asked) > _ASKED))
            lines += _wrapped("A", marked(answer_text(sample.turns), explanation.quotes[place]))
    return lines


def marked(text: str, quote: Quote) -> str:
    """A span of a text between `>>` and `<<`, with what stands around it, in printable characters."""
    if quote.start is None or quote.end is None:
        return f"{_printable(text[:_AROUND])} (the place cannot be found)"
    before, span, after = text[: quote.start], text[quote.start : quote.end], text[quote.end :]
    if len(span) > _AROUND:
        span = f"{span[: _AROUND // 2]} ... {span[-_AROUND // 2 :]}"
    before = f"... {before[-_AROUND:]}" if len(before) > _AROUND else before
    after = f"{after[:_AROUND]} ..." if len(after) > _AROUND else after
    return f"{_printable(before)}>>{_printable(span) or 'end'}<<{_printable(after)}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _wrapped(title: str, text: str) -> list[str]:
    """A paragraph for the terminal."""
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.wrap(text, width, initial_indent=f"    {title}: ", subsequent_indent="       ")


def _add_column(table: ScoreTable, name: str, explanation: Explanation) -> None:
    """Put a column into the score table, in place of one of that name."""
    columns = table.read([column for column in table.names if column != name])
    write_table(columns.append_column(name, pa.array(explanation.corrected, from_pandas=True)), table.path)
