"""The first stage of landmarks: a glimpse of every sample, which says little of its utility by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onesteptrain.methods import Scorer, Setting
from onesteptrain.proxy import Encoded
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.utility.encoded import anchor_groups, records_of
from onesteptrain.utility.glimpsing import Glimpse, Glimpser


@dataclass(frozen=True)
class Glimpses:
    """Losses and what one pass a sample shows of its gradient."""

    layers: int = 1
    batch_size: int | None = None

    def prepare(self, setting: Setting, /) -> Scorer:
        """Look at the anchors.

        Raises:
            AnchorError: one cannot be encoded.
        """
        proxy = setting.need_proxy("one_step")
        groups = anchor_groups(proxy.encoder, setting.need_anchors("one_step"), None)
        anchors = [one for members in groups.values() for one in members]
        look = Glimpser(proxy, self.layers, setting.seed, self.batch_size).towards(anchors)

        def measure(encoded: Sequence[Encoded]) -> list[Record]:
            return [_record(sample, found) for sample, found in zip(encoded, look(encoded), strict=True)]

        return lambda samples: records_of(proxy.encoder, samples, measure)


def _record(sample: Encoded, found: Glimpse) -> Record:
    """Scored by the loss, for want of better; nobody selects by this table."""
    if found.problem is not None:
        return Record(reason=found.problem)
    loss, length = float(found.loss.mean()), float(found.shown.norm())
    if not (math.isfinite(loss) and math.isfinite(length)):
        return Record(reason=f"its loss is {loss} and its gradient {length}; check the sample, or use float32")
    columns: dict[str, Value] = {
        "loss": loss,
        "worst_loss": float(found.loss.max()),
        "answer_tokens": int(sample.answer.sum()),
        "tokens": sample.tokens,
        "glimpse_length": length,
        "glimpse": found.shown.numpy(),
    }
    return Record(-loss, columns=columns)
