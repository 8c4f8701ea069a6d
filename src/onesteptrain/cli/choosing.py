"""`ost advise`, `ost select` and `ost report`: what to make of a scored pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from onesteptrain.cli.options import HOW, Command, Writer
from onesteptrain.cli.output import duration, moved_images
from onesteptrain.data.score_record import read_score_record
from onesteptrain.reporting import ReportOptions, write_report
from onesteptrain.selection import Figures, Selection, SelectOptions, select_rows
from onesteptrain.selection.advice import Advice, ShareAdvice, advise
from onesteptrain.storage.score_table import read_scores


@dataclass(frozen=True)
class Advise(Command):
    """Say which share of a scored pool to train on, what it keeps and what it saves, and how sure that is.

    Example: `ost advise run`
    """

    run: Path
    """Run directory of `ost score` or `ost run`."""

    _: KW_ONLY

    train_seconds_per_row: float | None = None
    """What training on a row takes, to say how long an epoch on each share is."""

    kind: tuple[str, ...] = ()
    """Columns of pool and anchors, such as source, that say of which kind a row is; as for `ost select`."""

    def __call__(self) -> None:
        """Weigh the shares."""
        advice = advise(read_scores(self.run), seconds_per_row=self.train_seconds_per_row, kind=self.kind)
        kinds = ["--kind", *self.kind] if self.kind else []
        then = ["select", self.run, "--keep", f"{100 * advice.recommended:.3g}%", *kinds, "--out", "SUBSET"]
        self.say(describe_advice(advice), advice.facts(), then)


@dataclass(frozen=True)
class Select(Writer):
    """Write a part of a scored pool: its own format, byte for byte, in its order.

    By default, rows that look unlike the anchors are dropped, and what is kept is drawn at random from the others.

    Example: `ost select run --keep 20% --out subset.json`
    """

    run: Path
    """Run directory of `ost score` or `ost run`."""

    _: KW_ONLY

    keep: str
    """How much at most: a share of the pool such as 20%, a number of rows such as 5000, of tokens such as "2M tokens",
    or of training steps such as "300 steps of 32"; or the lowest value to keep such as ">=0.5"."""

    out: Path
    """The file (or folder, for a Hugging Face dataset) to write."""

    options: Annotated[SelectOptions, HOW] = SelectOptions()

    def __call__(self) -> None:
        """Choose, write and say what was kept."""
        scores = read_scores(self.run)
        selection = select_rows(scores, keep=self.keep, options=self.options)
        selection.write(self.out, overwrite=self.overwrite)
        root = read_score_record(scores.path.parent).open_pool().image_root
        text = describe_selection(selection, self.out) + moved_images(root, self.out)
        facts = {**selection.summary(), "out": str(self.out), "image_root": str(root)}
        then = ["train", self.out, "--target", "MODEL", "--steps", "1000", "--out", "tuned"]
        self.say(text, facts, then)


@dataclass(frozen=True)
class Report(Writer):
    """Write an HTML page about a scored pool.

    Example: `ost report run --out report.html`
    """

    run: Path
    """Run directory of `ost score` or `ost run`."""

    _: KW_ONLY

    out: Path = Path("report.html")
    """The page."""

    examples: int = 12
    """Rows to show from each end of the ranking; 0 writes the page without the pool file."""

    kind: tuple[str, ...] = ()
    """Columns of pool and anchors, such as source, that say of which kind a row is; as for `ost select`."""

    def __call__(self) -> None:
        """Write the page."""
        page = write_report(
            read_scores(self.run), self.out, options=ReportOptions(self.examples, self.kind), overwrite=self.overwrite
        )
        size = page.stat().st_size
        then = ["select", self.run, "--keep", "20%", "--out", "SUBSET"]
        facts = {"report": str(page), "bytes": size}
        self.say(f"report: {page} ({size / 1e6:.1f} MB)", facts, then)


def describe_advice(advice: Advice) -> str:
    """The advice, for people."""
    heads = ("share", "     rows", "tokens", "utility", "harmful rows", "clean, expected", "epoch")
    lines = ["  ".join(heads), *(_line(heads, share) for share in advice.shares)]
    lines.append(f"utility has its knee at {advice.knee:.1%} of the rows")
    for told in (advice.guidance, advice.verdict, advice.learning):
        lines += told.sentences() if told is not None else ()
    lines.append(f"advice: keep at most {advice.recommended:.1%}: {advice.why}")
    if advice.stable is not None:
        lines.append(
            f"{advice.stable:.0%} of the top {advice.recommended:.0%} by utility would stay with other anchors"
        )
        lines.append(f"{'anchors':>8} {'reliability':>12} {'top in common':>14}")
        lines += [f"{row.anchors:>8} {row.reliability:>12.3f} {row.top_overlap:>14.0%}" for row in advice.anchors]
    else:
        lines.append("score with --intervals 8 to learn how sure the ranking is, and how many anchors are enough")
    return "\n".join(lines)


def _line(heads: Sequence[str], share: ShareAdvice) -> str:
    kept = share.kept
    harmful = "" if kept.harmful is None else f"{kept.harmful:.0f}"
    shares = (kept.tokens_share, kept.utility_share, kept.clean_share)
    tokens, utility, clean = ("" if value is None else f"{value:.1%}" for value in shares)
    epoch = "" if share.train_seconds is None else duration(share.train_seconds)
    cells = (f"{share.share:.0%}", str(kept.rows), tokens, utility, harmful, clean, epoch)
    return "  ".join(cell.rjust(len(head)) for head, cell in zip(heads, cells, strict=True)).rstrip()


def describe_selection(selection: Selection, out: Path) -> str:
    """What was kept, for people."""
    kept = len(selection.rows)
    lines = [f"kept {kept} of {selection.pool_rows} rows ({kept / selection.pool_rows:.1%}): {out}"]
    missing = selection.pool_rows - selection.scored_rows
    if missing:
        lines.append(f"{missing} rows without a score were left out")
    if selection.excluded:
        lines.append(f"{selection.excluded} rows were left out by the file of excluded rows")
    if selection.gate not in ("none", "blind"):
        unlike = " as unlike the anchors" if selection.gate == "trust" else ""
        lines.append(f"gate {selection.gate}: {selection.dropped} rows dropped{unlike}")
    if selection.verdict is not None:
        lines += selection.verdict.sentences()
    lines += [sentence for guidance in selection.guidance for sentence in guidance.sentences()]
    if selection.learning is not None:
        lines += selection.learning.sentences()
    if selection.skipped_similar is not None:
        lines.append(f"{selection.skipped_similar} rows were passed over as too similar to a kept one")
    if selection.budget is not None and kept < selection.budget:
        gated = selection.gate == "trust" and selection.scored_rows - selection.dropped < selection.budget
        more = "; add --fill for those of the others that are most like the anchors" if gated else ""
        lines.append(f"fewer than the {selection.budget} rows asked for: no other row can be kept{more}")
    if selection.groups is not None:
        lines.append("groups: " + ", ".join(f"{name} {count}" for name, count in selection.groups.items()))
    if selection.kinds is not None:
        shares = [f"{name or 'none'} {of.before:.0%} to {of.after:.0%}" for name, of in selection.kinds.items()]
        lines.append(f"shares of pool and of what is kept: {', '.join(shares)}")
    if figures := _figures(selection.kept):
        lines.append(f"kept: {figures}")
    if selection.expected is not None and selection.expected.rows < selection.scored_rows - selection.dropped:
        lines.append(f"in the mean over draws: {_figures(selection.expected)}")
    return "\n".join(lines)


def _figures(figures: Figures) -> str:
    """What a subset holds, in words."""
    parts = []
    if figures.tokens_share is not None:
        parts.append(f"{figures.tokens} tokens ({figures.tokens_share:.1%} of the pool's)")
    if figures.utility_share is not None:
        parts.append(f"{figures.utility_share:.1%} of the positive utility")
        parts.append(f"{figures.harmful:.0f} rows with negative utility")
    if figures.clean_share is not None:
        parts.append(f"{figures.clean_share:.0%} clean, as expected by the gate")
    return ", ".join(parts)
