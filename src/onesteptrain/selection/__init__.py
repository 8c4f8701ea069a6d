"""From scores to a subset: which rows to keep. Works from the score table alone and imports no torch."""

from onesteptrain.selection.advice import Advice, advise
from onesteptrain.selection.choosing import Selection, select_rows
from onesteptrain.selection.figures import Figures, default_rule
from onesteptrain.selection.options import SelectOptions, parse_budget, parse_floor, read_budget
from onesteptrain.selection.orders import top_rows
from onesteptrain.selection.recorded import scored_pool

__all__ = [
    "Advice",
    "Figures",
    "SelectOptions",
    "Selection",
    "advise",
    "default_rule",
    "parse_budget",
    "parse_floor",
    "read_budget",
    "scored_pool",
    "select_rows",
    "top_rows",
]
