"""GraNd: how long the gradient of a sample is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onesteptrain.errors import ScoreError
from onesteptrain.methods import Scorer, Setting
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.scores import Record
from onesteptrain.utility.encoded import records_of
from onesteptrain.utility.gradients import gradient_norm


@dataclass(frozen=True)
class Grand:
    """Gradient norm (arXiv:2107.07075): length of the gradient of the sample's loss, by one backward pass a sample."""

    prefer: Literal["high", "low"] = "high"
    """Which end is best: high keeps what moves the proxy most, as the original; low what moves it least."""

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared but the proxy."""
        proxy = setting.need_proxy("grand")

        def measure(encoded: Sequence[Encoded]) -> list[Record]:
            return [self._record(proxy, sample) for sample in encoded]

        return lambda samples: records_of(proxy.encoder, samples, measure)

    def _record(self, proxy: Proxy, sample: Encoded) -> Record:
        try:
            loss, gradient = proxy.gradient([proxy.batch([sample])])
        except ScoreError as error:
            return Record(reason=str(error))
        length = gradient_norm(gradient)
        if not math.isfinite(length):
            return Record(reason=f"the length of its gradient is {length}; check the sample, or use float32")
        columns = {
            "grand": length,
            "loss": loss,
            "answer_tokens": int(sample.answer.sum()),
            "tokens": sample.tokens,
        }
        return Record(length if self.prefer == "high" else -length, columns=columns)
