"""What a public benchmark is: where it lies, and how one of its rows becomes a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.evaluating import Metrics


class Row(NamedTuple):
    """One row of a benchmark, in its own columns."""

    columns: Mapping[str, object]
    where: str
    """How messages call it."""

    image_root: Path
    """Folder that relative image paths start from."""


@dataclass(frozen=True)
class Suite:
    """A public benchmark."""

    hub: str
    """Name of the data set on the Hugging Face hub."""

    splits: tuple[str, ...]
    """Splits with right answers; the first is the default."""

    question: Callable[[Row], Question | None]
    """Reads a row; nothing for a row that the benchmark itself left blank."""

    metrics: Metrics | None = None
    """Its own measures beside the accuracy."""
