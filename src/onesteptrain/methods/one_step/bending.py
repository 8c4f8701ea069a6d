"""The second stage of a cascade: what the anchors' loss bends by, for rows whose place is in doubt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from onesteptrain.methods import Scorer, Setting
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.proxy.memory import clear_device_cache, out_of_memory
from onesteptrain.storage.score_table import Record
from onesteptrain.utility import AnchorGroup, Preconditioner, measure_anchors, read_preconditioner
from onesteptrain.utility.anchoring import precondition
from onesteptrain.utility.curvature import Curvature, measure_curvature
from onesteptrain.utility.encoded import anchor_groups, records_of
from onesteptrain.utility.per_sample import Measure, Measured, Piece, both, inner_products, per_sample, squares


@dataclass(frozen=True)
class Bending:
    """The second-order part of the utility along a few directions, by one backward pass a sample."""

    directions: int
    step_size: float
    adam: bool = False
    batch_size: int | None = None

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
        curvature, along = self._along(proxy, anchors, preconditioner)
        measure = both(inner_products(along), _squares(preconditioner))
        look = _Bends(proxy, curvature, measure, self.step_size, self.batch_size)
        return lambda samples: records_of(proxy.encoder, samples, look)

    def _along(
        self, proxy: Proxy, anchors: AnchorGroup, preconditioner: Preconditioner
    ) -> tuple[Curvature, dict[str, Tensor]]:
        """The curvature, and its directions as gradients meet them; fewer where there is no memory for all."""
        directions = self.directions
        while True:
            try:
                curvature = measure_curvature(proxy, anchors, directions=directions)
                return curvature.forgotten(), precondition(curvature.named(proxy), preconditioner)
            except RuntimeError as error:
                if directions == 1 or not out_of_memory(error):
                    raise
            directions //= 2
            clear_device_cache()  # after the error has let go of its tensors


@dataclass(frozen=True)
class _Bends:
    proxy: Proxy
    curvature: Curvature = field(repr=False)
    measure: Measure = field(repr=False)
    """What a step has in common with each direction, and its squared length."""

    step_size: float
    batch_size: int | None

    def __call__(self, samples: Sequence[Encoded]) -> list[Record]:
        return [self._record(one) for one in per_sample(self.proxy, samples, self.measure, batch_size=self.batch_size)]

    def _record(self, found: Measured) -> Record:
        if found.problem is not None:
            return Record(reason=found.problem)
        second_order = -0.5 * self.step_size**2 * self.curvature.along(found.numbers[:-1])
        squared = float(found.numbers[-1])
        if not (math.isfinite(second_order) and math.isfinite(squared)):
            return Record(reason=f"its gradient has the squared length {squared}; check the sample, or use float32")
        return Record(second_order, columns={"second_order": second_order, "step_squared": squared})


def _squares(preconditioner: Preconditioner) -> Measure:
    """The squared length of a step."""
    if not preconditioner:
        return squares()

    def of(piece: Piece) -> Tensor:
        scale = preconditioner[piece.name] if piece.rows is None else preconditioner[piece.name][piece.rows]
        return (piece.values * scale).flatten(1).square().sum(1, keepdim=True)

    return Measure(1, of)
