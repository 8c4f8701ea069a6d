"""EL2N: how far the proxy's predictions are from the answer tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onesteptrain.methods import Scorer, Setting, check_batch_size, finish_record
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import Record
from onesteptrain.utility.answers import answer_means, token_error, token_loss
from onesteptrain.utility.encoded import records_of


@dataclass(frozen=True)
class El2n:
    """Error L2 norm (arXiv:2107.07075): mean length of probabilities minus one-hot answer token."""

    prefer: Literal["high", "low"] = "high"
    """Which end is best: high keeps what is hard, as the original; low what is easy."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as batch_tokens allows."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared but the proxy."""
        proxy = setting.need_proxy("el2n")
        return lambda samples: records_of(proxy.encoder, samples, lambda encoded: self._measure(proxy, encoded))

    def _measure(self, proxy: Proxy, samples: Sequence[Encoded]) -> list[Record]:
        means = answer_means(proxy, samples, [token_error, token_loss], batch_size=self.batch_size).tolist()
        return [self._record(sample, error, loss) for sample, (error, loss) in zip(samples, means, strict=True)]

    def _record(self, sample: Encoded, error: float, loss: float) -> Record:
        if not (math.isfinite(error) and math.isfinite(loss)):
            return Record(reason=f"its loss is {loss} and its error {error}; check the sample, or use float32")
        return finish_record(sample, error if self.prefer == "high" else -error, {"el2n": error, "loss": loss})
