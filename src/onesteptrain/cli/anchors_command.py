"""`ost anchors`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import moved_images, say
from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.steps import AnchorDraw, PoolOptions, draw_anchor_file

Flat = Parameter(name="*")


def anchors(  # noqa: PLR0913  one parameter an option
    heldout: Path,
    *,
    out: Path,
    pool: Path | None = None,
    count: int = 100,
    by: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    reading: Annotated[PoolOptions, Flat] = PoolOptions(),
    pool_image_root: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Draw a stratified anchor set from held-out data.

    Args:
        heldout: Trusted samples that no model was trained on.
        out: The anchor file to write, in the format of the held-out data.
        pool: The pool to be scored; anchors that stand in it are refused.
        count: How many anchors.
        by: Columns to stratify by, such as topic and level.
        reading: How the held-out data is read.
        pool_image_root: Folder that the pool's relative image paths start from.
        seed: Of the draw.
        overwrite: Replace an existing file.
        json: Print the result as JSON.
    """
    against = open_pool(pool, image_root=pool_image_root) if pool is not None else None
    opened = reading.open(heldout)
    drawn = draw_anchor_file(opened, against, out, AnchorDraw(count, by, seed), overwrite=overwrite)
    checked = "none of them stands in the pool" if against else "not checked against a pool; give --pool"
    text = f"drew {drawn} anchors: {out} ({checked})" + moved_images(opened.image_root, out)
    say(text, {"anchors": drawn, "out": str(out), "image_root": str(opened.image_root)}, as_json=json)
