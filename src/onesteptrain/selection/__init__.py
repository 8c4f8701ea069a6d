"""From scores to a subset: which rows to keep. Works from the score table alone and imports no torch."""

from onesteptrain.selection.budget import parse_budget
from onesteptrain.selection.top import Selection, select_rows, select_subset, top_rows

__all__ = ["Selection", "parse_budget", "select_rows", "select_subset", "top_rows"]
