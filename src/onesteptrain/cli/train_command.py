"""`ost train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import progress_bar, say
from onesteptrain.jobs.steps import PoolOptions
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.training import FinetuneOptions, TrainOptions
from onesteptrain.training import train as train_target

Flat = Parameter(name="*")


def train(  # noqa: PLR0913  one parameter an option
    subset: Path,
    *,
    target: str,
    out: Path,
    finetune: Annotated[FinetuneOptions, Flat] = FinetuneOptions(),
    reading: Annotated[PoolOptions, Flat] = PoolOptions(),
    scope: Annotated[ScopeOptions, Flat] = ScopeOptions(),
    loading: Annotated[LoadOptions, Flat] = LoadOptions(),
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Fine-tune a target model on a subset: under Protocol A with --epochs, under Protocol B with --steps.

    Args:
        subset: What to train on, such as a file that `ost select` wrote.
        target: Checkpoint folder or hub name of a vision-language model.
        out: Checkpoint folder to write.
        finetune: How the target is trained.
        reading: How the subset is read.
        scope: Which parameters are trained.
        loading: How the target is loaded.
        overwrite: Replace an earlier checkpoint in this folder.
        json: Print the result as JSON.
    """
    options = TrainOptions(finetune=finetune, scope=scope, load=loading)
    with progress_bar("training", "steps") as progress:
        result = train_target(target, reading.open(subset), options, out, overwrite=overwrite, progress=progress)
    text = (
        f"trained on {result.rows} rows in {result.steps} steps and {result.seconds:.1f} s, "
        f"loss {result.losses[0]:.3f} to {result.losses[-1]:.3f}: {result.checkpoint}"
    )
    if result.refused:
        text += f"\n{len(result.refused)} rows left out, such as: {next(iter(result.refused.values()))}"
    facts = {**result._asdict(), "checkpoint": str(result.checkpoint)}
    say(text, facts, as_json=json)
