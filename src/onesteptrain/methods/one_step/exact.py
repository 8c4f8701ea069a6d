"""The utility by definition, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onesteptrain.errors import ScoreError
from onesteptrain.methods.one_step.signals import finish
from onesteptrain.pool import Sample
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.scores import Record
from onesteptrain.utility import AnchorGroup, Preconditioner, exact_utility
from onesteptrain.utility.encoded import records_of


@dataclass(frozen=True)
class Exact:
    """Takes the step on each sample and measures the anchors."""

    proxy: Proxy
    anchors: Sequence[AnchorGroup]
    preconditioner: Preconditioner = field(repr=False)
    step_size: float

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return records_of(self.proxy.encoder, samples, lambda encoded: [self._record(one) for one in encoded])

    def _record(self, sample: Encoded) -> Record:
        try:
            loss, falls = exact_utility(
                self.proxy, sample, self.anchors, step_size=self.step_size, preconditioner=self.preconditioner
            )
        except ScoreError as error:
            return Record(reason=str(error))
        utility = float(sum(group.share * float(value) for group, value in zip(self.anchors, falls, strict=True)))
        return finish(sample, utility, {"loss": loss}, self.anchors, falls)
