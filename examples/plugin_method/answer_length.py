"""Answer length: how many words the assistant says; rows of one length stand in a random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onesteptrain.data.pool import Sample, text_of
from onesteptrain.errors import ConfigError
from onesteptrain.methods import Scorer, Setting
from onesteptrain.storage.score_table import Record
from onesteptrain.storage.seeds import uniform


@dataclass(frozen=True)
class AnswerLength:
    """Number of words of the answers, and less than one word more from the method's own seed."""

    uses_proxy: ClassVar[bool] = False
    """Neither proxy nor anchors are asked for."""

    max_words: int = 1000
    """A longer answer has a reason in place of a score."""

    seed: int = 0
    """Of the order among answers of one length; the run's own seed is another one."""

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ConfigError(f"max_words is {self.max_words}; it must be at least 1")

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared; a method with a proxy would take it from the setting."""
        return lambda samples: [self._record(sample) for sample in samples]

    def _record(self, sample: Sample) -> Record:
        words = len(text_of(sample, "assistant").split())
        if words > self.max_words:
            return Record(reason=f"its answer has {words} words, more than {self.max_words}; raise --max-words")
        return Record(words + uniform("answer length", self.seed, sample.uid), columns={"words": words})
