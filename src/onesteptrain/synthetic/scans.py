"""Real handwritten digits (UCI, by way of scikit-learn), split by scan and drawn into pictures."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onesteptrain.errors import MissingExtraError

Part = Literal["pretrain", "pool", "heldout", "benchmark"]

_SHARES: dict[Part, float] = {"pretrain": 0.10, "pool": 0.50, "heldout": 0.15, "benchmark": 0.25}

CELL = 16
"""Side of the square that one digit fills, in pixels."""

COLUMNS = 2
"""A picture has 2 x 2 cells: at most four digits."""


class Scan(NamedTuple):
    """One handwritten digit."""

    digit: int
    pixels: NDArray[np.float64]
    """8 x 8, ink from 0 to 16."""


@functools.cache
def scans(part: Part) -> tuple[tuple[Scan, ...], ...]:
    """The scans of one part of the world, by digit; no scan is in two parts.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError('the digits world needs scikit-learn: pip install "onesteptrain[worlds]"') from error
    data: Any = load_digits()
    order = np.random.default_rng(2605).permutation(len(data.images))
    starts = np.cumsum([0.0, *_SHARES.values()]) * len(order)
    place = list(_SHARES).index(part)
    mine = order[round(starts[place]) : round(starts[place + 1])]
    return tuple(
        tuple(Scan(digit, data.images[index]) for index in mine if data.target[index] == digit) for digit in range(10)
    )


class Drawing(NamedTuple):
    """How a picture shows some digits: everything that is not the digits themselves."""

    scans: tuple[int, ...]
    """Which scan of its digit stands in for each digit."""

    cells: tuple[int, ...]
    """Rising cell numbers, in reading order."""

    shifts: tuple[tuple[int, int], ...]
    """Pixels to the right and down, from 0 to 2."""

    ink: float
    """Brightness of the strokes, from 0 to 1."""


def plan(generator: np.random.Generator, digits: Sequence[int], part: Part) -> Drawing:
    """Choose at random how to show some digits."""
    count = len(digits)
    return Drawing(
        tuple(int(generator.integers(len(scans(part)[digit]))) for digit in digits),
        tuple(sorted(int(cell) for cell in generator.permutation(COLUMNS * COLUMNS)[:count])),
        tuple((int(right), int(down)) for right, down in generator.integers(0, 3, (count, 2))),
        float(generator.uniform(0.75, 1.0)),
    )


def draw(digits: Sequence[int], drawing: Drawing, part: Part) -> bytes:
    """Draw some digits as a PNG of 32 x 32 pixels, light on dark."""
    canvas = np.zeros((COLUMNS * CELL, COLUMNS * CELL))
    for digit, scan, cell, (right, down) in zip(digits, drawing.scans, drawing.cells, drawing.shifts, strict=True):
        ink = Image.fromarray((scans(part)[digit][scan].pixels / 16 * 255).astype(np.uint8))
        large = np.asarray(ink.resize((CELL - 2, CELL - 2), Image.Resampling.BILINEAR), dtype=np.float64)
        top, left = cell // COLUMNS * CELL + down, cell % COLUMNS * CELL + right
        canvas[top : top + CELL - 2, left : left + CELL - 2] = large
    stream = io.BytesIO()
    Image.fromarray((canvas * drawing.ink).astype(np.uint8)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()
