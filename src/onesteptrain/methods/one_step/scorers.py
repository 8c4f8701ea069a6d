"""The scorers: by the step itself, and by forward passes along the anchor gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from jaxtyping import Float64
from torch import Tensor

from onesteptrain.data.corruption import corrupt
from onesteptrain.data.pool import Sample
from onesteptrain.methods import Reference
from onesteptrain.methods.one_step.extras import Extra, GroupGradients, Scored
from onesteptrain.methods.one_step.signals import compact, finish, interval_signals, shares_of, token_signals
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.utility import (
    AnchorGroup,
    ExactSteps,
    ExactUtility,
    Preconditioner,
    measure_anchors,
    token_derivatives,
)
from onesteptrain.utility.anchoring import in_parts, without
from onesteptrain.utility.encoded import encode, records_of, records_with
from onesteptrain.utility.first_order import TokenDerivatives


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


class Directions(NamedTuple):
    """What samples are measured along."""

    parts: Sequence[AnchorGroup]
    """Random parts of the anchors, for intervals; their weighted mean is all anchors. May be empty."""

    groups: Sequence[AnchorGroup]
    """Named groups, or one without a name. Empty where parts stand for the whole and no group has a name."""

    epsilons: Sequence[float]
    """Shift along each part and then each group."""

    estimator: Literal["fd", "jvp"]


@dataclass(frozen=True)
class FirstOrder:
    """Measures samples along the anchor gradient."""

    proxy: Proxy
    directions: Directions
    step_size: float
    batch_size: int | None
    store_tokens: bool
    extras: Sequence[Extra]
    by_gradient: GroupGradients | None = None
    """Named groups that are measured by the sample's gradient, and are then none of the directions."""

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return records_with(self.proxy.encoder, samples, self._measure)

    def along(self, group: AnchorGroup, epsilon: float) -> FirstOrder:
        """The same scorer with one other direction."""
        directions = Directions([], [group], [epsilon], self.directions.estimator)
        return replace(self, directions=directions, by_gradient=None)

    def signals(self, encoded: Sequence[Encoded]) -> list[dict[str, Value]]:
        """What the tokens of some samples say along all anchors, without more; the utility stands among it."""
        return [
            {"utility": float((total := self._total(derivative)).mean()), **token_signals(loss, total)}
            for loss, derivative, _ in self._derivatives(encoded)
        ]

    def _measure(self, encoded: Sequence[Encoded], samples: Sequence[Sample]) -> list[Record]:
        records = [
            self._record(sample, tokens) if tokens.problem is None else Record(reason=tokens.problem)
            for sample, tokens in zip(encoded, self._derivatives(encoded), strict=True)
        ]
        for extra in (self.by_gradient, *self.extras):
            if extra is not None:
                more = extra(Scored(samples, encoded, records, self.signals))
                records = [_joined(record, columns) for record, columns in zip(records, more, strict=True)]
        return records

    def _derivatives(self, encoded: Sequence[Encoded]) -> Sequence[TokenDerivatives]:
        parts, groups, epsilons, estimator = self.directions
        return token_derivatives(
            self.proxy,
            encoded,
            [group.direction for group in (*parts, *groups)],
            estimator=estimator,
            epsilons=epsilons,
            batch_size=self.batch_size,
        )

    def _total(self, derivative: Float64[Tensor, "direction token"]) -> Float64[Tensor, " token"]:
        """Utility of each token by all anchors together."""
        parts, groups = self.directions.parts, self.directions.groups
        whole = derivative[: len(parts)] if parts else derivative
        return self.step_size * (shares_of(parts or groups) @ whole)

    def _record(self, sample: Encoded, tokens: TokenDerivatives) -> Record:
        parts, groups = self.directions.parts, self.directions.groups
        loss, derivative, _ = tokens
        total = self._total(derivative)
        signals = token_signals(loss, total)
        if parts:
            signals |= interval_signals(self.step_size * derivative[: len(parts)], shares_of(parts))
        if self.store_tokens:
            signals |= {"token_utility": compact(total), "token_loss": compact(loss)}
        by_group = self.step_size * derivative[len(parts) :].mean(1)
        return finish(sample, float(total.mean()), signals, groups, by_group)


def _joined(record: Record, columns: Mapping[str, Value] | str) -> Record:
    """A record with more columns; where they are a reason instead, the sample has no score."""
    if record.reason is not None:
        return record
    if isinstance(columns, str):
        return Record(reason=columns)
    return replace(record, columns={**record.columns, **columns})


@dataclass(frozen=True)
class Referenced:
    """A scorer that can say what clean rows look like to it: the anchors, each measured as if it were none.

    An anchor's own gradient is a part of the direction that samples are measured along, which flatters it. So the
    anchors are split into folds, and each is measured along the gradient of the others.
    """

    scorer: FirstOrder
    total: AnchorGroup = field(repr=False)
    """All anchors together."""

    epsilon: float
    preconditioner: Preconditioner = field(repr=False)
    anchors: Sequence[Sample] = field(repr=False)
    copies: int
    """How many copies of anchors with something wrong are measured too, at most."""

    folds: int
    seed: int

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return self.scorer(samples)

    def reference(self) -> Reference:
        """Anchors and copies with their records, each along the gradient of the anchors in other folds."""
        made = corrupt(self.anchors, count=self.copies) if self.copies else []
        anchors: dict[str, Record] = {}
        corrupted: dict[str, Record] = {}
        for fold in in_parts(self.anchors, min(self.folds, len(self.anchors)), seed=self.seed):
            scorer = self.scorer.along(self._others(fold), self.epsilon)
            uids = {anchor.uid for anchor in fold}
            copies = [copy.sample for copy in made if copy.anchor in uids]
            for samples, records in ((fold, anchors), (copies, corrupted)):
                records.update(zip((sample.uid for sample in samples), scorer(samples), strict=True))
        return Reference(
            [(anchor, anchors[anchor.uid]) for anchor in self.anchors],
            [(copy, corrupted[copy.sample.uid]) for copy in made],
        )

    def _others(self, fold: Sequence[Sample]) -> AnchorGroup:
        """The anchors outside a fold; the fold's gradient is taken anew, so that memory holds one at a time."""
        proxy = self.scorer.proxy
        encoded = [each for each in (encode(proxy.encoder, anchor) for anchor in fold) if isinstance(each, Encoded)]
        (part,) = measure_anchors(
            proxy, {"": encoded}, preconditioner=self.preconditioner, batch_size=self.scorer.batch_size
        )
        return without(self.total, part, share=len(fold) / len(self.anchors))
