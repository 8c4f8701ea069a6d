"""From scores to a subset: which rows to keep. Works from the score table alone and imports no torch."""

from onesteptrain.selection.budget import parse_budget, parse_floor, read_budget
from onesteptrain.selection.choosing import Selection, select_rows, select_subset
from onesteptrain.selection.distinct import distinct_rows
from onesteptrain.selection.options import SelectOptions
from onesteptrain.selection.ordering import top_rows

__all__ = [
    "SelectOptions",
    "Selection",
    "distinct_rows",
    "parse_budget",
    "parse_floor",
    "read_budget",
    "select_rows",
    "select_subset",
    "top_rows",
]
