"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small for more threads to pay

import pytest

from onesteptrain.pool import ImageRef, Sample, Turn
from tests.building import checkpoint, png


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A tiny Qwen3-VL with its real processor."""
    return checkpoint("qwen3_vl")


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """Makes a single-turn sample."""

    def make(row: int, question: str, answer: str, images: int = 1) -> Sample:
        pictures = tuple(ImageRef(png(10 * row + k), f"{row}-{k}") for k in range(images))
        return Sample(f"s{row}", row, (Turn("user", (*pictures, question)), Turn("assistant", (answer,))))

    return make
