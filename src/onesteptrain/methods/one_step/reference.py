"""What clean rows look like: the anchors, each measured as if it were none.

An anchor's own gradient is a part of the direction that samples are measured along, which flatters it. So the anchors
are split into folds, and each is measured along the gradient of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onesteptrain.data.pool import Sample
from onesteptrain.methods.one_step.first_order import FirstOrder
from onesteptrain.proxy import Encoded
from onesteptrain.storage.score_table import Record
from onesteptrain.utility import AnchorGroup, Preconditioner, measure_anchors
from onesteptrain.utility.anchoring import in_parts, without
from onesteptrain.utility.encoded import encode


@dataclass(frozen=True)
class Referenced:
    """A scorer that can say what clean rows look like to it."""

    scorer: FirstOrder
    total: AnchorGroup = field(repr=False)
    """All anchors together."""

    epsilon: float
    preconditioner: Preconditioner = field(repr=False)
    anchors: Sequence[Sample] = field(repr=False)
    folds: int
    seed: int

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return self.scorer(samples)

    def reference(self) -> list[tuple[Sample, Record]]:
        """The anchors with their records, each along the gradient of the anchors in other folds."""
        found = []
        for fold in in_parts(self.anchors, min(self.folds, len(self.anchors)), seed=self.seed):
            scorer = self.scorer.along(self._others(fold), self.epsilon)
            found += list(zip(fold, scorer(fold), strict=True))
        return found

    def _others(self, fold: Sequence[Sample]) -> AnchorGroup:
        """The anchors outside a fold; the fold's gradient is taken anew, so that memory holds one at a time."""
        proxy = self.scorer.proxy
        encoded = [one for anchor in fold if isinstance(one := encode(proxy.encoder, anchor), Encoded)]
        (part,) = measure_anchors(
            proxy, {"": encoded}, preconditioner=self.preconditioner, batch_size=self.scorer.batch_size
        )
        return without(self.total, part, share=len(fold) / len(self.anchors))
