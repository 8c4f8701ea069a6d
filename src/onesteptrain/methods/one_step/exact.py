"""The utility by definition: a step on each sample, several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onesteptrain.methods.one_step.signals import finish
from onesteptrain.pool import Sample
from onesteptrain.proxy import Encoded
from onesteptrain.proxy.model import Room
from onesteptrain.proxy.versions import Versions
from onesteptrain.scores import Record
from onesteptrain.utility import AnchorGroup, Fallen, Preconditioner, exact_utilities
from onesteptrain.utility.encoded import records_of
from onesteptrain.utility.exact import side_by_side


@dataclass(frozen=True)
class Exact:
    """Takes the step on each sample and measures the anchors."""

    versions: Versions = field(repr=False)
    anchors: Sequence[AnchorGroup]
    preconditioner: Preconditioner = field(repr=False)
    step_size: float
    candidates: int | None = None
    """Steps side by side; as many as pay if it is not said."""

    room: Room = field(default_factory=Room, repr=False)
    """How many fit into memory; learned while working."""

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return records_of(self.versions.proxy.encoder, samples, self._measure)

    def _measure(self, samples: Sequence[Encoded]) -> list[Record]:
        found = exact_utilities(
            self.versions,
            samples,
            self.anchors,
            step_size=self.step_size,
            preconditioner=self.preconditioner,
            candidates=self.candidates or side_by_side(self.versions, self.anchors),
            room=self.room,
        )
        return [self._record(sample, one) for sample, one in zip(samples, found, strict=True)]

    def _record(self, sample: Encoded, found: Fallen) -> Record:
        if found.problem is not None:
            return Record(reason=found.problem)
        falls = found.falls
        utility = float(sum(group.share * float(value) for group, value in zip(self.anchors, falls, strict=True)))
        return finish(sample, utility, {"loss": found.loss}, self.anchors, falls)
