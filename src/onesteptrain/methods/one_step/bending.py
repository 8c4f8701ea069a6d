"""The second stage of a cascade: what the anchors' loss bends by, for rows whose place is in doubt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onesteptrain.errors import ScoreError
from onesteptrain.methods import Scorer, Setting
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.scores import Record
from onesteptrain.utility import Preconditioner, measure_anchors, read_preconditioner
from onesteptrain.utility.anchoring import precondition
from onesteptrain.utility.curvature import Curvature, measure_curvature
from onesteptrain.utility.encoded import anchor_groups, records_of
from onesteptrain.utility.gradients import flat


@dataclass(frozen=True)
class Bending:
    """The second-order part of the utility along a few directions, by one backward pass a sample."""

    directions: int
    step_size: float
    adam: bool = False
    batch_size: int = 16

    def prepare(self, setting: Setting, /) -> Scorer:
        """Measure how the anchors' loss bends.

        Raises:
            AnchorError: an anchor cannot be encoded.
            ConfigError: the anchor gradient is zero or not finite.
        """
        proxy = setting.need_proxy("one_step")
        moments = setting.second_moments if self.adam else None
        preconditioner = {} if moments is None else read_preconditioner(moments, proxy)
        groups = anchor_groups(proxy.encoder, setting.need_anchors("one_step"), None)
        (anchors,) = measure_anchors(
            proxy, groups, preconditioner=preconditioner, batch_size=self.batch_size, keep=True
        )
        curvature = measure_curvature(proxy, anchors, directions=self.directions)
        look = _Bends(proxy, curvature, preconditioner, self.step_size)
        return lambda samples: records_of(proxy.encoder, samples, look)


@dataclass(frozen=True)
class _Bends:
    proxy: Proxy
    curvature: Curvature = field(repr=False)
    preconditioner: Preconditioner = field(repr=False)
    step_size: float

    def __call__(self, samples: Sequence[Encoded]) -> list[Record]:
        return [self._record(sample) for sample in samples]

    def _record(self, sample: Encoded) -> Record:
        try:
            _, gradient = self.proxy.gradient([self.proxy.batch([sample])])
        except ScoreError as error:
            return Record(reason=str(error))
        step = flat(self.proxy, precondition(gradient, self.preconditioner))
        second_order = -0.5 * self.step_size**2 * self.curvature.along(step)
        squared = float(step.double().square().sum())
        if not (math.isfinite(second_order) and math.isfinite(squared)):
            return Record(reason=f"its gradient has the squared length {squared}; check the sample, or use float32")
        return Record(second_order, columns={"second_order": second_order, "step_squared": squared})
