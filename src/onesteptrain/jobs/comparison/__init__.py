"""The bake-off: many methods, shares, protocols and seeds on one pool, trained, evaluated and costed side by side."""

from onesteptrain.jobs.comparison.comparison import Compared, compare
from onesteptrain.jobs.comparison.request import RANDOM, SET, TOP, Comparison, MethodArm, Protocol, read_comparison
from onesteptrain.jobs.comparison.trials import Trial

__all__ = [
    "RANDOM",
    "SET",
    "TOP",
    "Compared",
    "Comparison",
    "MethodArm",
    "Protocol",
    "Trial",
    "compare",
    "read_comparison",
]
