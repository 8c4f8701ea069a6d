"""Numbers as text: one power of ten for a whole page, so that columns align and figures and tables agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NOTHING = "–"
"""Stands where there is no number."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_USUAL = 0.95
"""Quantile of the magnitudes that decides on the power of ten, so that outliers do not."""


class Scale(NamedTuple):
    """A power of ten and a unit."""

    exponent: int
    """A multiple of 3."""

    unit: str
    """Without the power of ten; empty where the method does not say."""

    @property
    def factor(self) -> float:
        """What a value is multiplied with."""
        return 10.0**-self.exponent

    @property
    def label(self) -> str:
        """Power and unit, such as "10⁻³ nats per token"."""
        power = f"10{str(self.exponent).translate(_SUPERSCRIPTS)}" if self.exponent else ""
        return " ".join(part for part in (power, self.unit) if part)


def choose_scale(values: NDArray[np.float64], unit: str) -> Scale:
    """The scale at which most values have one or two digits before the point."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    usual = float(np.quantile(sizes, _USUAL)) if len(sizes) else 1.0
    return Scale(3 * math.floor((math.log10(usual) + 1) / 3), unit)


def count(value: float) -> str:
    """A whole number with thousands set apart."""
    return f"{round(value):,}"


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with as many digits after the point as its neighbours; a true minus sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{digits}f}".replace("-", "−")


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as per cent, on one line with its sign."""
    return NOTHING if share is None or not math.isfinite(share) else f"{fixed(100 * share, digits)}\u00a0%"


def general(value: object) -> str:
    """A number as short as its value allows; anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}".replace("-", "−") if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whatever reads best."""
    if seconds is None:
        return NOTHING
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "count": count,
    "fixed": fixed,
    "percent": percent,
    "general": general,
    "duration": duration,
}
"""What the template calls."""
