"""Anchors that may be wrong themselves: those that look like corrupted anchors to a proxy that can tell.

Each anchor is measured by the others (RUN/reference.parquet). Let A(t) be the share of anchors with at least the
nonconformity t, and P(t) that of corrupted anchors, in the mean over the kinds of error. If a share w of the anchors is
wrong in such ways, A(t) >= w P(t) at every t, so that w is at most the least A(t) / P(t), an anchor left out of the
count for chance. Of the anchors beyond t about w P(t) / A(t) are then wrong, and those up to the lowest t where this
is two thirds are named. Where P is low wherever A is, the proxy cannot tell, and nothing is said.

Source of the bound: Blanchard, Lee and Scott, Semi-Supervised Novelty Detection (2010), section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.selection.kinds import find_kinds
from onesteptrain.selection.separation import separate
from onesteptrain.selection.trust import read_examples
from onesteptrain.storage.score_table import ScoreTable

_LEAST_POWER = 0.6
"""Share of corrupted anchors beyond a cut from which on the cut counts: few of them far out prove nothing."""

_MOST_WRONG = 0.2
"""Share of wrong anchors up to which they can be told from anchors that the proxy merely finds hard."""

_SURE = 2 / 3

_STANDS_OUT = 0.9
"""Share of the other anchors that an anchor must exceed in a signal for it to be named."""

_WORDS = {"harm": "harm to the other anchors", "loss": "mean loss", "worst_loss": "loss of the worst token"}


class OddAnchor(NamedTuple):
    """An anchor that looks like a corrupted one."""

    uid: str
    row: int
    """Place in the anchor file."""

    nonconformity: float
    """Standard deviations of the anchors, beyond their median."""

    why: str


class OddAnchors(NamedTuple):
    """Anchors that may be wrong, the farthest out first."""

    anchors: list[OddAnchor]
    told: bool
    """Whether the proxy can tell wrong anchors from right ones at all."""


def find_odd_anchors(table: ScoreTable) -> OddAnchors:
    """Find anchors that look like corrupted ones.

    Raises:
        ScoreError: the table has no signals of its anchors, or of fewer than 20.
    """
    kinds, reference = find_kinds(table), table.reference
    examples = read_examples(table, kinds).without_style()
    if reference is None or not len(examples.corrupted):
        return OddAnchors([], told=False)
    separation = separate(examples, len(kinds.names))
    distances = separation.nonconformity(examples.anchors, examples.anchor_codes)
    wrong = separation.nonconformity(examples.corrupted, examples.corrupted_codes)
    places, told = odd_places(distances, wrong, examples.errors)
    signals = np.stack([reference.numbers(name) for name in examples.signals], axis=1)
    known = np.flatnonzero(np.isfinite(signals).all(1))  # the anchors of the examples
    sizes, named = np.abs(examples.anchors), reference.read(["uid", "row"]).take(known).to_pylist()
    return OddAnchors(
        [
            OddAnchor(**named[place], nonconformity=float(distances[place]), why=_why(place, examples.signals, sizes))
            for place in places
        ],
        told,
    )


def odd_places(
    anchors: NDArray[np.float64], corrupted: NDArray[np.float64], kinds: NDArray[np.str_]
) -> tuple[list[int], bool]:
    """Which anchors look like corrupted ones, the farthest out first, and whether that can be told.

    Args:
        anchors: Nonconformity of the anchors.
        corrupted: That of corrupted anchors.
        kinds: Kind of each.
    """
    cuts = np.append(np.unique(anchors), np.nextafter(anchors.max(), np.inf))
    share = np.mean(anchors >= cuts[:, None], axis=1)
    power = np.mean([np.mean(corrupted[kinds == kind] >= cuts[:, None], axis=1) for kind in np.unique(kinds)], axis=0)
    strong = power >= _LEAST_POWER
    least = np.maximum(share - 1 / len(anchors), 0)[strong] / power[strong]
    wrong = float(least.min(initial=1.0))
    if wrong > _MOST_WRONG:
        return [], False
    sure = cuts[(wrong * power >= _SURE * share) & (share > 0)]
    beyond = np.flatnonzero(anchors >= sure.min(initial=np.inf))
    return [int(place) for place in beyond[np.argsort(-anchors[beyond], kind="stable")]], True


def _why(place: int, names: tuple[str, ...], sizes: NDArray[np.float64]) -> str:
    """The signals by which an anchor stands out."""
    others = np.delete(sizes, place, axis=0)
    higher = (others < sizes[place]).mean(0)
    out = [column for column in np.argsort(-higher, kind="stable") if higher[column] >= _STANDS_OUT]
    said = [
        f"{_WORDS[names[column].removeprefix('second_')]} {sizes[place, column]:.2g}, above {higher[column]:.0%} of "
        f"the others (median {np.median(others[:, column]):.2g})"
        for column in out
    ]
    return "; ".join(said) or "all its signals together look like those of corrupted anchors"
