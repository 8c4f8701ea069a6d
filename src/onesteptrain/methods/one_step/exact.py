"""The utility by definition, by a step on each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onesteptrain.data.pool import Sample
from onesteptrain.methods.one_step.signals import finish
from onesteptrain.proxy import Encoded
from onesteptrain.storage.score_table import Record
from onesteptrain.utility import ExactSteps, ExactUtility
from onesteptrain.utility.encoded import records_of


@dataclass(frozen=True)
class Exact:
    """Takes the step on each sample and measures the anchors."""

    steps: ExactSteps

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return records_of(self.steps.proxy.encoder, samples, self._measure)

    def _measure(self, samples: Sequence[Encoded]) -> list[Record]:
        return [self._record(sample, exact) for sample, exact in zip(samples, self.steps(samples), strict=True)]

    def _record(self, sample: Encoded, exact: ExactUtility) -> Record:
        if exact.problem is not None:
            return Record(reason=exact.problem)
        groups, falls = self.steps.anchors, exact.falls
        utility = float(sum(group.share * float(value) for group, value in zip(groups, falls, strict=True)))
        return finish(sample, utility, {"loss": exact.loss}, groups, falls)
