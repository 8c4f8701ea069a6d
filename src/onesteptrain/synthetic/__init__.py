"""Small built-in worlds with known good and bad samples, and small models that live in them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

CheckpointName = Literal["proxy", "target", "target_large", "charts_proxy", "charts_target"]


def checkpoint(name: CheckpointName) -> Path:
    """Folder of a pretrained model of the digits or the charts world; experiments/ says how each was made."""
    return Path(__file__).parent / "checkpoints" / name
