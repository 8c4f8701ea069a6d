"""Why rows look bad: where the harm sits, its likely cause, rows that need no picture, and what a score goes by.

Works from the score table of a run with `--store-tokens` (and `--ablate`), with the anchors as what is usual; only
quoting needs the tokenizer.
"""

from onesteptrain.reporting.diagnosis.explaining import ExplainOptions, Explanation, explain
from onesteptrain.reporting.diagnosis.measured import RULE

__all__ = ["RULE", "ExplainOptions", "Explanation", "explain"]
