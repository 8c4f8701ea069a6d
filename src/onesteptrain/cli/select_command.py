"""`ost select`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import moved_images, say
from onesteptrain.data.score_record import read_score_record
from onesteptrain.jobs.steps import select_into
from onesteptrain.selection import Selection, SelectOptions

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
    selection = select_into(run, out, keep=keep, options=options, overwrite=overwrite)
    root = read_score_record(run).open_pool().image_root
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
        more = "; add --fill for the least suspicious of the others" if gated else ""
        lines.append(f"fewer than the {selection.budget} rows asked for: no other row can be kept{more}")
    if selection.groups is not None:
        lines.append("groups: " + ", ".join(f"{name} {count}" for name, count in selection.groups.items()))
    if selection.tokens_share is not None:
        lines.append(f"tokens: {selection.tokens} ({selection.tokens_share:.1%} of the pool's)")
    if selection.utility_share is not None:
        lines.append(
            f"utility: {selection.utility_share:.1%} of the pool's positive utility; "
            f"{selection.harmful_kept} kept rows have negative utility"
        )
    return "\n".join(lines)


def _gate(selection: Selection) -> str:
    """What the gate dropped."""
    if selection.clean_share is None or selection.expected_clean is None:
        return f"gate {selection.gate}: {selection.dropped} rows dropped"
    return (
        f"gate: {selection.dropped} rows dropped as unlike the anchors; about {selection.clean_share:.0%} of the pool "
        f"is clean, and {selection.expected_clean:.0%} of what is kept"
    )
