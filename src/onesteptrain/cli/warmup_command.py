"""`ost warmup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import progress_bar, say
from onesteptrain.jobs.steps import PoolOptions
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.training import FinetuneOptions, WarmupOptions, most_common, warm_up

Flat = Parameter(name="*")


def warmup(  # noqa: PLR0913  one parameter an option
    pool: Path,
    *,
    proxy: str,
    out: Path,
    share: float = 0.05,
    checkpoints: int = 0,
    finetune: Annotated[FinetuneOptions, Flat] = FinetuneOptions(),
    reading: Annotated[PoolOptions, Flat] = PoolOptions(),
    scope: Annotated[ScopeOptions, Flat] = ScopeOptions(),
    loading: Annotated[LoadOptions, Flat] = LoadOptions(),
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Fine-tune the proxy on a share of the pool and keep Adam's second moments.

    Args:
        pool: The pool file or folder.
        proxy: Checkpoint folder or hub name of a small vision-language model.
        out: Folder to write; give it as --proxy to `ost score`.
        share: Share of the pool to train on.
        checkpoints: States to keep on the way for --method less, evenly spaced, the last one at the end.
        finetune: How the proxy is trained.
        reading: How the pool is read.
        scope: Which parameters are trained.
        loading: How the proxy is loaded.
        overwrite: Replace an earlier warm-up in this folder.
        json: Print the result as JSON.
    """
    rows = reading.open(pool)
    options = WarmupOptions(share=share, finetune=finetune, checkpoints=checkpoints)
    with progress_bar("warm-up", "steps") as progress:
        result = warm_up(load_proxy(proxy, scope, loading), rows, options, out, overwrite=overwrite, progress=progress)
    lines = [
        f"warmed up on {result.used} rows in {result.steps} steps and {result.seconds:.1f} s, "
        f"loss {result.losses[0]:.3f} to {result.losses[-1]:.3f}: {out}"
    ]
    lines += [f"  {count} rows left out: {reason}" for reason, count in most_common(result.refused)]
    facts = {"out": str(out), "rows": result.used, "steps": result.steps, "seconds": result.seconds}
    say("\n".join(lines), {**facts, "losses": result.losses, "refused": result.refused}, as_json=json)
