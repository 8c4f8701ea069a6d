"""`ost advise`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onesteptrain.cli.output import say
from onesteptrain.selection.advice import Advice, ShareAdvice, advise
from onesteptrain.storage.score_table import ScoreTable


def advise_run(run: Path, *, train_seconds_per_row: float | None = None, json: bool = False) -> None:
    """Say which share of a scored pool to train on, what it keeps and what it saves, and how sure that is.

    Args:
        run: Run directory of `ost score`.
        train_seconds_per_row: What training on a row takes, to say how long an epoch on each share is.
        json: Print the result as JSON.
    """
    advice = advise(ScoreTable(run / "scores.parquet"), seconds_per_row=train_seconds_per_row)
    say(describe(advice), advice.facts(), as_json=json)


def describe(advice: Advice) -> str:
    """The advice, for people."""
    heads = ("share", "     rows", "tokens", "utility", "harmful rows", "clean, expected", "epoch")
    lines = ["  ".join(heads), *(_line(heads, line) for line in advice.shares)]
    lines.append(f"utility has its knee at {advice.knee:.1%} of the rows")
    if advice.clean_share is not None:
        lines.append(f"about {advice.clean_share:.0%} of the pool is clean, as the anchors tell it")
    lines.append(f"advice: keep at most {advice.recommended:.1%}: {advice.why}")
    if advice.stable is not None:
        lines.append(
            f"{advice.stable:.0%} of the top {advice.recommended:.0%} by utility would stay with other anchors"
        )
        lines.append(f"{'anchors':>8} {'reliability':>12} {'top in common':>14}")
        lines += [f"{one.anchors:>8} {one.reliability:>12.3f} {one.top_overlap:>14.0%}" for one in advice.anchors]
    else:
        lines.append("score with --intervals 8 to learn how sure the ranking is, and how many anchors are enough")
    return "\n".join(lines)


def _line(heads: Sequence[str], advice: ShareAdvice) -> str:
    kept = advice.kept
    harmful = "" if kept.harmful is None else f"{kept.harmful:.0f}"
    tokens, utility, clean = map(_percent, (kept.tokens_share, kept.utility_share, kept.clean_share))
    cells = (f"{advice.share:.0%}", str(kept.rows), tokens, utility, harmful, clean, _hours(advice.train_seconds))
    return "  ".join(cell.rjust(len(head)) for head, cell in zip(heads, cells, strict=True)).rstrip()


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _hours(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
