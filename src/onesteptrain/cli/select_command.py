"""`ost select`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import moved_images, say
from onesteptrain.data.score_record import read_score_record
from onesteptrain.selection import Figures, Selection, SelectOptions, select_rows
from onesteptrain.storage.score_table import read_scores

Flat = Parameter(name="*")


def select(
    run: Path,
    *,
    keep: str,
    out: Path,
    options: Annotated[SelectOptions, Flat] = SelectOptions(),
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a part of a scored pool: its own format, byte for byte, in its order.

    By default, rows that look unlike the anchors are dropped, and what is kept is drawn at random from the others.

    Args:
        run: Run directory of `ost score`.
        keep: How much at most: a share of the pool such as 20%, a number of rows such as 5000, of tokens such as
            "2M tokens", or of training steps such as "300 steps of 32"; or the lowest value to keep such as ">=0.5".
        out: The file (or folder, for a Hugging Face dataset) to write.
        options: What is dropped, and what is preferred.
        overwrite: Replace an existing file.
        json: Print the result as JSON.
    """
    record = read_score_record(run)
    selection = select_rows(read_scores(run), keep=keep, options=options)
    selection.write(out, overwrite=overwrite)
    root = record.open_pool().image_root
    text = describe(selection, out) + moved_images(root, out)
    say(text, {**selection.summary(), "out": str(out), "image_root": str(root)}, as_json=json)


def describe(selection: Selection, out: Path) -> str:
    """What was kept, for people."""
    kept = len(selection.rows)
    lines = [f"kept {kept} of {selection.pool_rows} rows ({kept / selection.pool_rows:.1%}): {out}"]
    missing = selection.pool_rows - selection.scored_rows
    if missing:
        lines.append(f"{missing} rows without a score were left out")
    if selection.gate != "none":
        lines.append(_gate(selection))
    if selection.skipped_similar is not None:
        lines.append(f"{selection.skipped_similar} rows were passed over as too similar to a kept one")
    if selection.budget is not None and kept < selection.budget:
        gated = selection.gate == "trust" and selection.scored_rows - selection.dropped < selection.budget
        more = "; add --fill for those of the others that are most like the anchors" if gated else ""
        lines.append(f"fewer than the {selection.budget} rows asked for: no other row can be kept{more}")
    if selection.groups is not None:
        lines.append("groups: " + ", ".join(f"{name} {count}" for name, count in selection.groups.items()))
    if figures := _figures(selection.kept):
        lines.append(f"kept: {figures}")
    if selection.expected is not None and selection.expected.rows < selection.scored_rows - selection.dropped:
        lines.append(f"in the mean over draws: {_figures(selection.expected)}")
    return "\n".join(lines)


def _gate(selection: Selection) -> str:
    """What the gate dropped."""
    if selection.clean_share is None:
        return f"gate {selection.gate}: {selection.dropped} rows dropped"
    clean = f"about {selection.clean_share:.0%} of the pool is clean"
    return f"gate: {selection.dropped} rows dropped as unlike the anchors; {clean}"


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
