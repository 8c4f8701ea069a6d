"""What a warm-up teaches: anchors, and rows of its own, are measured before and after it, a forward pass each time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from onesteptrain.data.anchors import ACCEPTED
from onesteptrain.data.pool import Sample
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.learning_record import LearningRecord, Losses
from onesteptrain.training.encodings import encode_all
from onesteptrain.utility.answers import answer_losses

_OWN = 100
"""Rows of the warm-up that are measured too."""


class Watched(NamedTuple):
    """Samples that are measured before and after a training."""

    anchors: list[Encoded]
    own: list[Encoded]
    """Rows that it is on."""


def watch(proxy: Proxy, rows: Sequence[Encoded], anchors: Sequence[Sample], *, seed: int) -> Watched:
    """Choose what is measured: all anchors that never were in the pool, and some of the rows."""
    trusted, _ = encode_all(proxy.encoder, (anchor for anchor in anchors if not anchor.fields.get(ACCEPTED)))
    drawn = random.Random(seed).sample(range(len(rows)), min(_OWN, len(rows)))
    return Watched([trusted[place] for place in range(len(trusted))], [rows[place] for place in drawn])


def measure(proxy: Proxy, watched: Watched) -> tuple[list[float], list[float]]:
    """Mean loss of each answer, of the anchors and of the rows, in nats a token."""
    anchors, own = (
        [float(losses.mean()) for losses in answer_losses(proxy, samples, batch_size=None)] for samples in watched
    )
    return anchors, own


def learning_record(
    rows: int, watched: Watched, before: tuple[list[float], list[float]], after: tuple[list[float], list[float]]
) -> LearningRecord:
    """What two measurements say together, without samples that did not fit into memory."""
    return LearningRecord(rows, *(_losses(*part) for part in zip(watched, before, after, strict=True)))


def _losses(samples: Sequence[Encoded], before: Sequence[float], after: Sequence[float]) -> Losses:
    tokens = [int(sample.answer.sum()) for sample in samples]
    known = [each for each in zip(tokens, before, after, strict=True) if all(map(math.isfinite, each))]
    return Losses(*(list(column) for column in zip(*known, strict=True))) if known else Losses([], [], [])
