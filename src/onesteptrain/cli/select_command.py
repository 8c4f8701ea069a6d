"""`ost select`."""

from __future__ import annotations

from pathlib import Path

from onesteptrain.cli.output import moved_images, say
from onesteptrain.runs import Run
from onesteptrain.selection import Selection
from onesteptrain.steps import select_into


def select(  # noqa: PLR0913  one parameter an option
    run: Path,
    *,
    keep: str,
    out: Path,
    by: str = "score",
    distinct: float | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write the best rows of a scored pool: its own format, byte for byte, in its order.

    Args:
        run: Run directory of `ost score`.
        keep: A share of the pool such as 20%, a number of rows such as 5000, or the lowest value to keep such
            as ">=0.5".
        out: The file (or folder, for a Hugging Face dataset) to write.
        by: Column of the score table to rank by, highest first: score, harm, gain, utility.GROUP ...
        distinct: Go down the ranking and pass over rows whose representation has at least this cosine similarity to a
            kept row's; for score tables with a column `representation`.
        overwrite: Replace an existing file.
        json: Print the result as JSON.
    """
    selection = select_into(run, out, keep=keep, by=by, distinct=distinct, overwrite=overwrite)
    root = Path(Run(run).config["score"]["image_root"])
    text = describe(selection, out) + moved_images(root, out)
    say(text, {**selection.summary(), "out": str(out), "image_root": str(root)}, as_json=json)


def describe(selection: Selection, out: Path) -> str:
    """What was kept, for people."""
    kept = len(selection.rows)
    lines = [f"kept {kept} of {selection.pool_rows} rows ({kept / selection.pool_rows:.1%}): {out}"]
    missing = selection.pool_rows - selection.scored_rows
    if missing:
        lines.append(f"{missing} rows without a score were left out")
    if selection.skipped_similar is not None:
        lines.append(f"{selection.skipped_similar} rows were passed over as too similar to a kept one")
    if selection.budget is not None and kept < selection.budget:
        lines.append(f"fewer than the {selection.budget} rows asked for: no other row can be kept")
    if selection.tokens_share is not None:
        lines.append(f"tokens: {selection.tokens} ({selection.tokens_share:.1%} of the pool's)")
    if selection.utility_share is not None:
        lines.append(
            f"utility: {selection.utility_share:.1%} of the pool's positive utility; "
            f"{selection.harmful_kept} kept rows have negative utility"
        )
    return "\n".join(lines)
