"""Small bar charts: what they show, which part of the data owns which, and their pictures, drawn by matplotlib."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from onesteptrain.errors import MissingExtraError
from onesteptrain.storage.fingerprints import short_hash
from onesteptrain.synthetic.problem import Part

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

Colour = Literal["red", "blue", "green", "orange", "purple", "black"]

PALETTE: dict[Colour, str] = {
    "red": "#e41a1c",
    "blue": "#2070d8",
    "green": "#2ca02c",
    "orange": "#ff9f1c",
    "purple": "#8e3fc0",
    "black": "#111111",
}

_SHARES: dict[Part, float] = {"pretrain": 0.25, "pool": 0.45, "heldout": 0.10, "benchmark": 0.20}

SIDE = 48
"""Side of a picture, in pixels: three by three merged patches of Qwen3-VL and InternVL."""

BARS = (3, 4)
"""How many bars a chart may have."""

STEPS = 9
"""Heights that a bar may have; no two bars of a chart are equally high."""

SCALES = (1, 10)
"""Value of a step: the axis ends at 9 or at 90, which only its label tells."""


class Chart(NamedTuple):
    """What a picture shows."""

    colours: tuple[Colour, ...]
    """From left to right."""

    values: tuple[int, ...]
    """As they are read off the axis."""

    scale: int
    """Value of a step of the axis."""


class Style(NamedTuple):
    """How a picture shows it."""

    width: float
    """Share of its room that a bar fills."""

    grid: bool
    """Whether there are lines at a third, two thirds and the end of the axis."""

    paper: float
    """Brightness of the ground, from 0 to 1."""


def draw_chart(generator: np.random.Generator, part: Part) -> Chart:
    """Choose at random one of the charts that a part owns."""
    while True:
        bars = int(generator.choice(BARS))
        colours = tuple(list(PALETTE)[place] for place in generator.permutation(len(PALETTE))[:bars])
        chart = with_values(generator, Chart(colours, (), int(generator.choice(SCALES))))
        if owner(chart) == part:
            return chart


def with_values(generator: np.random.Generator, chart: Chart) -> Chart:
    """The same bars with other values."""
    steps = generator.permutation(STEPS)[: len(chart.colours)] + 1
    return chart._replace(values=tuple(int(step) * chart.scale for step in steps))


def owner(chart: Chart) -> Part:
    """The part that a chart belongs to: no chart is in two parts, whatever the seed of the data."""
    place = int(short_hash(repr(tuple(chart)), 4), 16) / 2**32
    ends = np.cumsum(list(_SHARES.values()))
    return list(_SHARES)[min(int(np.searchsorted(ends, place, side="right")), len(_SHARES) - 1)]


def draw_style(generator: np.random.Generator) -> Style:
    """Choose at random how to show a chart."""
    return Style(float(generator.uniform(0.6, 0.9)), bool(generator.integers(2)), float(generator.uniform(0.9, 1.0)))


def paint(chart: Chart, style: Style) -> bytes:
    """Draw a chart as a PNG of 48 x 48 pixels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sheet = _sheet()
    room = 1 / len(chart.colours)
    for place, bar in enumerate(sheet.bars):
        bar.set_visible(place < len(chart.colours))
        if place < len(chart.colours):
            left, height = room * (place + (1 - style.width) / 2), chart.values[place] / chart.scale
            bar.set_bounds(left, 0, room * style.width, height)
            bar.set_color(PALETTE[chart.colours[place]])
    for line in sheet.grid:
        line.set_visible(style.grid)
    sheet.label.set_text(str(STEPS * chart.scale))
    sheet.canvas.figure.set_facecolor((style.paper,) * 3)
    canvas: Any = sheet.canvas  # matplotlib gives these methods no types
    with _plain_style():
        canvas.draw()
    stream = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(stream, "PNG")
    return stream.getvalue()


class _Sheet(NamedTuple):
    """A figure that is drawn again and again, since making one takes longer than drawing it."""

    canvas: FigureCanvasAgg
    bars: tuple[Rectangle, ...]
    grid: tuple[Line2D, ...]
    label: Text


@functools.cache
def _sheet() -> _Sheet:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('the charts data need matplotlib: pip install "onesteptrain[synthetic]"') from error
    with _plain_style():
        figure = Figure(figsize=(1, 1), dpi=SIDE)
        axes = figure.add_axes((11 / SIDE, 2 / SIDE, 36 / SIDE, 41 / SIDE), facecolor="none")
        axes.set(xlim=(0, 1), ylim=(0, STEPS), xticks=[], yticks=[])
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_linewidth(1)
        bars = tuple(axes.bar(range(max(BARS)), [1] * max(BARS), linewidth=0))
        axes.set(xlim=(0, 1), ylim=(0, STEPS), xticks=[], yticks=[])
        heights = (STEPS // 3, 2 * STEPS // 3, STEPS)
        grid = tuple(axes.axhline(height, color="0.7", linewidth=1, zorder=0) for height in heights)
        label = axes.text(-0.03, STEPS, "", fontsize=9, ha="right", va="center")
        return _Sheet(FigureCanvasAgg(figure), bars, grid, label)


@contextlib.contextmanager
def _plain_style() -> Iterator[None]:
    """The settings that matter while drawing, whatever the user's own matplotlibrc says."""
    import matplotlib

    matters = ("font.", "text.", "path.", "lines.", "patch.", "axes.")
    plain: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name.startswith(matters)}
    with matplotlib.rc_context(plain):
        yield
