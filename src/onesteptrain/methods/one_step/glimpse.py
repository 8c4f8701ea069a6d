"""The first stage of landmarks: a glimpse of every sample, which says little of its utility by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onesteptrain.methods import Scorer, Setting
from onesteptrain.proxy import Encoded
from onesteptrain.scores import Record, Value
from onesteptrain.utility.encoded import records_of
from onesteptrain.utility.glimpsing import Glimpse, Glimpser


@dataclass(frozen=True)
class Glimpses:
    """Losses and a sketch of the gradient at the top of the proxy, by one pass a sample."""

    layers: int = 0
    dimensions: int = 512
    batch_size: int | None = None

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared but the proxy."""
        proxy = setting.need_proxy("one_step")
        look = Glimpser(proxy, self.layers, self.dimensions, setting.seed, self.batch_size)

        def measure(encoded: Sequence[Encoded]) -> list[Record]:
            return [_record(sample, found) for sample, found in zip(encoded, look(encoded), strict=True)]

        return lambda samples: records_of(proxy.encoder, samples, measure)


def _record(sample: Encoded, found: Glimpse) -> Record:
    """Scored by the loss, for want of better; nobody selects by this table."""
    if found.problem is not None:
        return Record(reason=found.problem)
    loss = float(found.loss.mean())
    if not (math.isfinite(loss) and math.isfinite(found.length) and bool(found.sketch.isfinite().all())):
        return Record(reason=f"its loss is {loss} and its gradient {found.length}; check the sample, or use float32")
    columns: dict[str, Value] = {
        "loss": loss,
        "worst_loss": float(found.loss.max()),
        "answer_tokens": int(sample.answer.sum()),
        "tokens": sample.tokens,
        "glimpse_length": found.length,
        "glimpse": found.sketch.numpy(),
    }
    return Record(-loss, columns=columns)
