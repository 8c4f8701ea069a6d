"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are too small for more threads to pay

import pytest

from onesteptrain.data.pool import ImageRef, Sample, Turn
from tests.building import checkpoint, png

os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own folders stay, to be looked into
_SCRATCH = tempfile.mkdtemp(prefix="ost-test-")
tempfile.tempdir = _SCRATCH  # what tests make besides goes with them


def pytest_unconfigure() -> None:
    """Runs in workers too, which end without the interpreter's own clearing up."""
    shutil.rmtree(_SCRATCH, ignore_errors=True)


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
