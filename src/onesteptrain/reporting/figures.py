"""The figures, as SVG that stands in the page: text takes the page's colour and font, so both colour schemes work."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from onesteptrain.errors import MissingExtraError
from onesteptrain.reporting.counting import Column, LengthBins, UtilityCurve
from onesteptrain.reporting.typeset import Scale, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#0a0b0c"
"""Becomes currentColor."""

_USEFUL, _HARMFUL = "#2b83c4", "#d2692c"
"""Blue and orange in mid-tones: told apart by colour-blind readers, at least 3:1 on white and on near black."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "onesteptrain",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.6,
}
_INCHES = (5.0, 2.9)
_BINS = 40
_TAIL = 0.005
"""Share of the rows at each end that may lie outside the range shown."""

_FAR = 3.0
"""Zero is shown unless it lies further from the values than this many times their range."""

_WIDE = 8.0
"""Ratio of the longest to the shortest answers from which their axis is logarithmic."""


def need_matplotlib() -> None:
    """Refuse early where no figure can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            'the report draws figures with matplotlib, which is not installed; pip install "onesteptrain[report]"'
        ) from error


def bin_edges(values: Column, *, signed: bool) -> Column:
    """At most about 40 bins of a round width with 0 at an edge, over all values but the outermost."""
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
    spread = float(high - low) or abs(float(high)) or 1.0
    if signed and 0 <= low <= _FAR * spread:
        low = 0.0
    if signed and -_FAR * spread <= high <= 0:
        high = 0.0
    wanted = max(float(high - low), spread) / _BINS
    power = 10.0 ** np.floor(np.log10(wanted))
    width = power * min((step for step in (1, 2, 2.5, 5, 10) if step * power >= wanted), default=10)
    edges: Column = np.arange(np.floor(low / width), np.floor(high / width) + 2) * width
    return edges


def histogram(values: Column, *, name: str, scale: Scale) -> Markup:
    """Rows by value; of a signal whose zero has a meaning, those below 0 in another colour."""
    signed = name != "score"
    values = values[np.isfinite(values)] * scale.factor
    edges = bin_edges(values, signed=signed)
    inside = values[(values >= edges[0]) & (values <= edges[-1])]
    heights, _ = np.histogram(inside, edges)
    outside = len(values) - len(inside)

    def draw(axes: Axes) -> None:
        colours = [_HARMFUL if signed and left < 0 else _USEFUL for left in edges[:-1]]
        axes.bar(edges[:-1], heights, np.diff(edges) * 0.92, align="edge", color=colours)
        if signed and edges[0] <= 0 <= edges[-1]:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel(_labelled(name, scale))
        axes.set_ylabel("rows")
        if outside:
            note = f"{count(outside)} {'row' if outside == 1 else 'rows'} outside"
            axes.text(1, 1, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=8.5)

    return _svg(f"histogram-{name}", f"Histogram of {name}, {count(len(values))} rows", draw)


def cut_histogram(kept: Column, dropped: Column, anchors: Column) -> Markup:
    """Where rows lie that are kept and dropped, as parts of all of them, with the anchors as a line.

    Args:
        kept: Nonconformity of rows.
        dropped: The same of rows that are dropped.
        anchors: The same of the anchors.
    """
    rows = np.concatenate([kept, dropped])
    edges = bin_edges(np.concatenate([rows, anchors]), signed=False)
    parts = [np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] for part in (kept, dropped, anchors)]
    ours, theirs, usual = parts[0] * 100 / len(rows), parts[1] * 100 / len(rows), parts[2] * 100 / len(anchors)

    def draw(axes: Axes) -> None:
        wide = np.diff(edges) * 0.92
        axes.bar(edges[:-1], ours, wide, align="edge", color=_USEFUL, label=f"kept, {count(len(kept))} rows")
        label = f"dropped, {count(len(dropped))} rows"
        axes.bar(
            edges[:-1],
            theirs,
            wide,
            ours,
            align="edge",
            color=_HARMFUL,
            hatch="////",
            edgecolor=INK,
            linewidth=0,
            label=label,
        )
        axes.stairs(usual, edges, color=INK, linewidth=1.2, label=f"anchors, {count(len(anchors))}")
        axes.set(xlabel="unlike the anchors: suspicion, in their standard deviations", ylabel="% of rows, of anchors")
        axes.legend(frameon=False, fontsize=8.5)

    return _svg(
        "cut", f"{count(len(kept))} rows kept and {count(len(dropped))} dropped, by how unlike the anchors", draw
    )


def kept_curve(curve: UtilityCurve) -> Markup:
    """Share of the positive utility against share of the rows."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=INK, alpha=0.4, linewidth=0.8, dashes=(4, 3))
        axes.plot(100 * curve.shares, 100 * curve.utility, color=_USEFUL)
        axes.text(76, 66, "at random", va="top", fontsize=8.5, alpha=0.8)
        axes.set(xlim=(0, 101), ylim=(0, 104), xlabel="best rows, % of the pool", ylabel="positive utility, %")

    return _svg("kept", "Positive utility against the share of the best rows", draw)


def length_plot(bins: LengthBins, *, name: str, scale: Scale) -> Markup:
    """Medians and quartiles of the values against answer length."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, middle, high = (column * scale.factor for column in bins.quartiles)

    def draw(axes: Axes) -> None:
        axes.fill_between(bins.tokens, low, high, color=_USEFUL, alpha=0.22, linewidth=0)
        axes.plot(bins.tokens, middle, "o-", color=_USEFUL, markersize=4)
        below, above = axes.get_ylim()
        if below < 0 < above:
            axes.axhline(0, color=INK, linewidth=0.8)
        if bins.tokens[-1] > _WIDE * bins.tokens[0] > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        axes.set_xlabel("answer length, tokens")
        axes.set_ylabel(_labelled(name, scale))

    return _svg("length", f"Median {name} against answer length", draw)


def _labelled(name: str, scale: Scale) -> str:
    return f"{name}, {scale.label}" if scale.label else name


def _svg(name: str, title: str, draw: Callable[[Axes], None]) -> Markup:
    """An SVG element without the ids, colours and outside addresses that would not suit a page."""
    import matplotlib
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{re.sub(r'[^a-z]', '-', name)}-", text)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))
