"""From scores to a subset: which rows to keep. Works from the score table alone and imports no torch."""

from onesteptrain.selection.budget import parse_budget, parse_floor
from onesteptrain.selection.distinct import distinct_rows
from onesteptrain.selection.top import Selection, select_rows, select_subset, top_rows

__all__ = ["Selection", "distinct_rows", "parse_budget", "parse_floor", "select_rows", "select_subset", "top_rows"]
