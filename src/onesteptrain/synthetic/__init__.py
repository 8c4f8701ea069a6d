"""Synthetic data on which it is known what is wrong with every row, and small models that were pretrained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

from onesteptrain.errors import ConfigError
from onesteptrain.synthetic.charts import ChartProblem
from onesteptrain.synthetic.digits import DigitProblem
from onesteptrain.synthetic.making import SyntheticData, SyntheticOptions, make
from onesteptrain.synthetic.mixed import MixedOptions, make_mixed

__all__ = ["CheckpointName", "MixedOptions", "SyntheticData", "SyntheticOptions", "checkpoint", "make_synthetic"]

CheckpointName = Literal[
    "proxy", "target", "target_large", "charts_proxy", "charts_target", "mixed_proxy", "mixed_target"
]


@overload
def make_synthetic(kind: Literal["digits", "charts"], options: SyntheticOptions, folder: Path) -> SyntheticData: ...
@overload
def make_synthetic(kind: Literal["mixed"], options: MixedOptions, folder: Path) -> SyntheticData: ...
def make_synthetic(
    kind: Literal["digits", "charts", "mixed"], options: SyntheticOptions | MixedOptions, folder: Path
) -> SyntheticData:
    """Make data in a new folder, which appears whole or not at all.

    Raises:
        ConfigError: the options are another kind's; noise of no such kind is asked for, or more of a kind than there
            are rows that can go bad in it.
        MissingExtraError: what draws the pictures is not installed: scikit-learn for digits, matplotlib for charts.
        RunError: the folder exists.
    """
    if kind == "mixed" and isinstance(options, MixedOptions):
        return make_mixed(options, folder)
    if kind == "mixed" or isinstance(options, MixedOptions):
        needed = "MixedOptions" if kind == "mixed" else "SyntheticOptions"
        raise ConfigError(f"{kind} data are asked for with {type(options).__name__}; give {needed}")
    return make(DigitProblem if kind == "digits" else ChartProblem, options, folder)


def checkpoint(name: CheckpointName) -> Path:
    """Folder of a model that was pretrained on built-in data; experiments/ says how each was made."""
    return Path(__file__).parent / "checkpoints" / name
