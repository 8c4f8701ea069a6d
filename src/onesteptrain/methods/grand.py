"""GraNd: how long the gradient of a sample is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onesteptrain.methods import Scorer, Setting, check_batch_size, finish_record
from onesteptrain.proxy import Encoded
from onesteptrain.storage.score_table import Record
from onesteptrain.utility.encoded import records_of
from onesteptrain.utility.per_sample import Measured, per_sample, squares


@dataclass(frozen=True)
class Grand:
    """Gradient norm (arXiv:2107.07075): length of the gradient of the sample's loss, by one backward pass."""

    prefer: Literal["high", "low"] = "high"
    """Which end is best: high keeps what moves the proxy most, as the original; low what moves it least."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as batch_tokens allows."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared but the proxy."""
        proxy = setting.need_proxy("grand")

        def measure(encoded: Sequence[Encoded]) -> list[Record]:
            gradients = per_sample(proxy, encoded, squares(), batch_size=self.batch_size)
            return [self._record(sample, gradient) for sample, gradient in zip(encoded, gradients, strict=True)]

        return lambda samples: records_of(proxy.encoder, samples, measure)

    def _record(self, sample: Encoded, gradient: Measured) -> Record:
        if gradient.problem is not None:
            return Record(reason=gradient.problem)
        length = float(gradient.numbers[0]) ** 0.5
        if not math.isfinite(length):
            return Record(reason=f"the length of its gradient is {length}; check the sample, or use float32")
        columns = {"grand": length, "loss": gradient.loss}
        return finish_record(sample, length if self.prefer == "high" else -length, columns)
