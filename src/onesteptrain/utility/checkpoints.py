"""States of a warm-up that are kept on the way: weights in scope, Adam's moments, and how fast it learned.

A checkpoint is a folder with `weights.safetensors`, `first_moments.safetensors`, `second_moments.safetensors` and
`checkpoint.json`. The moments are Adam's `exp_avg` and `exp_avg_sq` as they stand, bias not removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from onesteptrain.errors import ModelError
from onesteptrain.proxy import Proxy
from onesteptrain.storage.atomic import write_json

PARTS = ("weights", "first_moments", "second_moments")
FACTS = "checkpoint.json"


class WarmCheckpoint(NamedTuple):
    """A state that a warm-up went through; tensors are on the CPU, by parameter in scope."""

    step: int
    """Optimizer steps until then."""

    learning_rate: float
    """Mean learning rate of the steps since the checkpoint before."""

    weights: Mapping[str, Tensor]
    first_moments: Mapping[str, Tensor]
    """Adam's exp_avg; zero where no step gave a gradient."""

    second_moments: Mapping[str, Tensor]
    """Adam's exp_avg_sq."""


def write_checkpoint(folder: Path, checkpoint: WarmCheckpoint) -> None:
    """Write a checkpoint into a new folder."""
    folder.mkdir(parents=True)
    for part in PARTS:
        tensors = {name: value.contiguous() for name, value in getattr(checkpoint, part).items()}
        save_file(tensors, folder / f"{part}.safetensors", metadata={"format": "pt"})
    write_json(folder / FACTS, {"step": checkpoint.step, "learning_rate": checkpoint.learning_rate})


def read_checkpoint(folder: Path, proxy: Proxy) -> WarmCheckpoint:
    """Read a checkpoint for the parameters in scope.

    Raises:
        ModelError: it is incomplete, or was kept for other parameters.
    """
    files = [folder / FACTS, *(folder / f"{part}.safetensors" for part in PARTS)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ModelError(f"checkpoint {folder} has no {missing[0]}; warm up again with --checkpoints")
    facts = json.loads(files[0].read_text(encoding="utf-8"))
    return WarmCheckpoint(facts["step"], facts["learning_rate"], *(_in_scope(path, proxy) for path in files[1:]))


def _in_scope(path: Path, proxy: Proxy) -> dict[str, Tensor]:
    kept = load_file(path)
    wrong = [name for name, value in proxy.parameters.items() if name not in kept or kept[name].shape != value.shape]
    if wrong:
        raise ModelError(
            f"{path} does not fit {len(wrong)} of {len(proxy.parameters)} parameters in scope "
            f"(such as {wrong[0]}); warm up with the same --scope"
        )
    return {name: kept[name] for name in proxy.parameters}
