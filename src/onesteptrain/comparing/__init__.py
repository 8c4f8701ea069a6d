"""The bake-off: many methods, shares, protocols and seeds on one pool, trained, evaluated and costed side by side."""

from onesteptrain.comparing.comparison import Compared, compare
from onesteptrain.comparing.request import Comparison, MethodArm, Protocol, read_comparison
from onesteptrain.comparing.trials import Trial

__all__ = ["Compared", "Comparison", "MethodArm", "Protocol", "Trial", "compare", "read_comparison"]
