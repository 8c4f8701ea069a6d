"""IFD: how little the question and its images help the proxy to predict the answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onesteptrain.data.pool import Sample, Turn
from onesteptrain.errors import ConfigError
from onesteptrain.methods import Scorer, Setting, check_batch_size, finish_record
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import Record
from onesteptrain.utility.answers import answer_means, token_loss
from onesteptrain.utility.encoded import encode


@dataclass(frozen=True)
class Ifd:
    """Instruction-following difficulty (arXiv:2308.12032): loss of the answer with the question over loss without."""

    ratio: Literal["loss", "perplexity"] = "loss"
    """What is divided: mean losses as in Cherry LLM, or perplexities as in Superfiltering (arXiv:2402.00530)."""

    max_ifd: float = 1.0
    """Largest ratio of an ordinary sample; the originals drop what is above, here it ranks last. inf for no limit."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as batch_tokens allows."""

    def __post_init__(self) -> None:
        if not self.max_ifd > 0:
            raise ConfigError(f"max_ifd is {self.max_ifd}; it must be positive")
        check_batch_size(self.batch_size)

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared but the proxy."""
        proxy = setting.need_proxy("ifd")
        return lambda samples: self._score(proxy, samples)

    def _score(self, proxy: Proxy, samples: Sequence[Sample]) -> list[Record]:
        pairs = [_pair(proxy, sample) for sample in samples]
        usable = [pair for pair in pairs if isinstance(pair, _Pair)]
        losses = [
            answer_means(proxy, side, [token_loss], batch_size=self.batch_size)[:, 0].tolist()
            for side in ([pair.asked for pair in usable], [pair.alone for pair in usable])
        ]
        records = iter([self._record(pair.asked, *both) for pair, *both in zip(usable, *losses, strict=True)])
        return [next(records) if isinstance(pair, _Pair) else Record(reason=pair) for pair in pairs]

    def _record(self, sample: Encoded, asked: float, alone: float) -> Record:
        ifd = _divide(asked, alone, self.ratio)
        if not math.isfinite(ifd):
            return Record(
                reason=f"its answer has loss {asked} with the question and {alone} without, which have no ratio; "
                "check the sample, or use float32"
            )
        columns = {"ifd": ifd, "loss": asked, "loss_alone": alone}
        return finish_record(sample, ifd if ifd <= self.max_ifd else -ifd, columns)


class _Pair(NamedTuple):
    asked: Encoded
    alone: Encoded


def _pair(proxy: Proxy, sample: Sample) -> _Pair | str:
    """The sample with its questions and without them, or the reason why there are not both."""
    asked = encode(proxy.encoder, sample)
    if isinstance(asked, str):
        return asked
    alone = encode(proxy.encoder, without_questions(sample))
    return f"without its question: {alone}" if isinstance(alone, str) else _Pair(asked, alone)


def without_questions(sample: Sample) -> Sample:
    """The sample with empty user turns and no system turn: the assistant's words and the marks around them remain."""
    turns = [Turn("user", ("",)) if turn.role == "user" else turn for turn in sample.turns if turn.role != "system"]
    return dataclasses.replace(sample, turns=tuple(turns))


def _divide(asked: float, alone: float, ratio: Literal["loss", "perplexity"]) -> float:
    """The ratio of the losses or of the perplexities; nan where it is no finite number."""
    try:
        return asked / alone if ratio == "loss" else math.exp(asked - alone)
    except (ZeroDivisionError, OverflowError):
        return math.nan
