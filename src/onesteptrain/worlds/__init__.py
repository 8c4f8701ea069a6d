"""Small built-in worlds with known good and bad samples, and small models that live in them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

CheckpointName = Literal["proxy", "target", "target_large"]


def checkpoint(name: CheckpointName) -> Path:
    """Folder of a pretrained model of the digits world; experiments/digits_world says how it was made."""
    return Path(__file__).parent / "checkpoints" / name
