"""Random: the baseline that every selection must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onesteptrain.data.pool import Sample
from onesteptrain.methods import Scorer, Setting
from onesteptrain.storage.score_table import Record
from onesteptrain.storage.seeds import uniform


@dataclass(frozen=True)
class Random:
    """A uniform number in [0, 1) from the seed and the sample's uid, so that order and shards do not matter."""

    uses_proxy: ClassVar[bool] = False

    def prepare(self, setting: Setting, /) -> Scorer:
        """Nothing is shared but the seed."""

        def score(samples: Sequence[Sample]) -> list[Record]:
            return [Record(uniform(setting.seed, sample.uid)) for sample in samples]

        return score
