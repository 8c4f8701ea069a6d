"""What sets a scored pool and its anchors apart: texts and pictures, lengths in tokens, and the proxy's loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.likeness import Finding, compare_sizes, read_findings, share_below
from onesteptrain.storage.score_table import ScoreTable

_MANY = 0.25
"""Share of rows with an uncommon loss from which on it is worth a word; noise alone makes some high."""

_HIGH = 0.9
"""Share of the anchors whose loss is below that of all but the easiest rows where no row is like them."""


def find_unlike(table: ScoreTable) -> list[str]:
    """What sets the pool apart from its anchors, a sentence an entry; empty if nothing does, or nothing is known.

    Rows beyond all anchors are judged by what they are not like; anchors beyond all rows make rows look better, or
    worse, than they are.
    """
    return [finding.text for finding in likeness_findings(table, read_findings(table.path.parent))]


def likeness_findings(table: ScoreTable, before: Sequence[Finding]) -> list[Finding]:
    """What was found before scoring, and what the scores tell."""
    reference = table.reference
    shared = set(table.names) & set(reference.names) if reference is not None else set()
    if reference is None or not {"answer_tokens", "tokens"} <= shared:
        return list(before)
    answers, usual_answers = (part.numbers("answer_tokens") for part in (table, reference))
    prompts, usual_prompts = (part.numbers("tokens") - part.numbers("answer_tokens") for part in (table, reference))
    return [
        *(finding for finding in before if finding.about != "lengths"),  # tokens count what the proxy sees
        *compare_sizes("answers", "tokens", answers, usual_answers),
        *compare_sizes("questions, with their pictures,", "tokens", prompts, usual_prompts),
        *(_compare_losses(table.numbers("loss"), reference.numbers("loss")) if "loss" in shared else ()),
    ]


def _compare_losses(rows: NDArray[np.float64], anchors: NDArray[np.float64]) -> list[Finding]:
    rows, anchors = rows[np.isfinite(rows)], anchors[np.isfinite(anchors)]
    if not len(rows) or not len(anchors):
        return []
    if (share := share_below(rows, anchors)) >= _MANY:
        text = (
            f"the proxy finds {share:.0%} of the rows easier than nearly all anchors, so that too many may look clean"
        )
        return [Finding("loss", f"{text}: give anchors that are like the rows")]
    if np.quantile(rows, _MANY) > (usual := float(np.quantile(anchors, _HIGH))):
        text = f"the proxy finds {1 - _MANY:.0%} of the rows harder than {_HIGH:.0%} of the anchors"
        remedy = "where such rows can be right, give anchors that are like them"
        return [Finding("loss", f"{text} (loss above {usual:.2g} nats a token): {remedy}")]
    return []
