"""Loss: how badly the proxy predicts the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onesteptrain.methods import Scorer, Setting, check_batch_size, finish_record
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import Record
from onesteptrain.utility.answers import answer_means, token_loss
from onesteptrain.utility.encoded import records_of

_LARGEST_EXPONENT = 709.0  # e to the 710 is no float64


@dataclass(frozen=True)
class Loss:
    """Mean loss of the answer tokens in one batched pass, or the perplexity that belongs to it."""

    prefer: Literal["low", "high"] = "low"
    """Which end is best: low keeps what the proxy finds likely, high what it finds hard."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as batch_tokens allows."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared but the proxy."""
        proxy = setting.need_proxy("loss")
        return lambda samples: records_of(proxy.encoder, samples, lambda encoded: self._measure(proxy, encoded))

    def _measure(self, proxy: Proxy, samples: Sequence[Encoded]) -> list[Record]:
        losses = answer_means(proxy, samples, [token_loss], batch_size=self.batch_size)[:, 0].tolist()
        return [self._record(sample, loss) for sample, loss in zip(samples, losses, strict=True)]

    def _record(self, sample: Encoded, loss: float) -> Record:
        if not math.isfinite(loss):
            return Record(reason=f"its loss is {loss}; check the sample, or use float32")
        perplexity = math.exp(loss) if loss < _LARGEST_EXPONENT else None
        return finish_record(sample, -loss if self.prefer == "low" else loss, {"loss": loss, "perplexity": perplexity})
