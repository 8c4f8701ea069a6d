"""EL2N: how far the proxy's predictions are from the answer tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onesteptrain.errors import ConfigError
from onesteptrain.methods import Scorer, Setting
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.scores import Record
from onesteptrain.utility.answers import answer_means, token_error, token_loss
from onesteptrain.utility.encoded import records_of


@dataclass(frozen=True)
class El2n:
    """Error L2 norm (arXiv:2107.07075): mean length of chances minus one-hot answer token, in one batched pass."""

    prefer: Literal["high", "low"] = "high"
    """Which end is best: high keeps what is hard, as the original; low what is easy."""

    batch_size: int = 16
    """Samples in one pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")

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
        columns = {
            "el2n": error,
            "loss": loss,
            "answer_tokens": int(sample.answer.sum()),
            "tokens": sample.tokens,
        }
        return Record(error if self.prefer == "high" else -error, columns=columns)
