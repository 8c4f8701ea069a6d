"""Whether anchors and pool look like samples of one kind: lengths of answers and of questions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesteptrain.storage.score_table import ScoreTable

_WIDER = 1.5
"""Times that the range of the anchors' lengths is widened at both ends, as a few anchors do not show all of it."""

_MANY = 0.1
"""Share of rows, or of anchors, from which on it is worth a word."""


def find_unlike(table: ScoreTable) -> list[str]:
    """What sets the pool apart from its anchors, a sentence an entry; empty if nothing does, or nothing is known.

    Rows beyond all anchors are judged by what they are not like; anchors beyond all rows make rows look better, or
    worse, than they are.
    """
    reference = table.reference
    if reference is None or not {"answer_tokens", "tokens"} <= set(table.names) & set(reference.names):
        return []
    answers, usual_answers = (part.numbers("answer_tokens") for part in (table, reference))
    prompts, usual_prompts = (part.numbers("tokens") - part.numbers("answer_tokens") for part in (table, reference))
    pairs = (("answers", answers, usual_answers), ("questions, with their pictures,", prompts, usual_prompts))
    return [sentence for name, rows, anchors in pairs for sentence in _compare(name, rows, anchors)]


def _compare(name: str, rows: NDArray[np.float64], anchors: NDArray[np.float64]) -> list[str]:
    rows, anchors = rows[np.isfinite(rows)], anchors[np.isfinite(anchors)]
    if not len(rows) or not len(anchors):
        return []
    sentences = []
    for part, beyond, others in (("rows", rows, "anchor's"), ("anchors", anchors, "row's")):
        limits = anchors if part == "rows" else rows
        low, high = limits.min() / _WIDER, limits.max() * _WIDER
        for share, how in ((float((beyond < low).mean()), "shorter"), (float((beyond > high).mean()), "longer")):
            if share >= _MANY:
                ends = f"{limits.min():.0f} to {limits.max():.0f} tokens"
                sentences.append(
                    f"{share:.0%} of the {part} have {name} that are {how} than any {others} ({ends}): "
                    "give anchors that answer as the pool does"
                )
    return sentences
