"""The utility from forward passes alone, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from jaxtyping import Float64
from torch import Tensor

from onesteptrain.data.pool import Sample
from onesteptrain.methods.one_step.extras import Extra
from onesteptrain.methods.one_step.groups import GroupGradients
from onesteptrain.methods.one_step.signals import compact, finish, interval_signals, shares_of, token_signals
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.utility import AnchorGroup, token_derivatives
from onesteptrain.utility.encoded import records_with
from onesteptrain.utility.first_order import TokenDerivatives


class Yardsticks(NamedTuple):
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
    yardsticks: Yardsticks
    step_size: float
    batch_size: int | None
    store_tokens: bool
    extras: Sequence[Extra]
    by_gradient: GroupGradients | None = None
    """Named groups that are measured by the sample's gradient, and are then none of the yardsticks."""

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        return records_with(self.proxy.encoder, samples, self._measure)

    def along(self, group: AnchorGroup, epsilon: float) -> FirstOrder:
        """The same scorer with one other yardstick."""
        return replace(self, yardsticks=Yardsticks([], [group], [epsilon], self.yardsticks.estimator), by_gradient=None)

    def signals(self, encoded: Sequence[Encoded]) -> list[dict[str, Value]]:
        """What the tokens of some samples say along all anchors, without more; the utility stands among it."""
        return [
            {"utility": float((total := self._total(derivative)).mean()), **token_signals(loss, total)}
            for loss, derivative, _ in self._derivatives(encoded)
        ]

    def _measure(self, encoded: Sequence[Encoded], samples: Sequence[Sample]) -> list[Record]:
        records = [
            self._record(one, found.loss, found.derivative) if found.problem is None else Record(reason=found.problem)
            for one, found in zip(encoded, self._derivatives(encoded), strict=True)
        ]
        extras = self.extras if self.by_gradient is None else (self.by_gradient, *self.extras)
        for extra in extras:
            more = extra(self, samples, encoded, records)
            records = [_joined(record, columns) for record, columns in zip(records, more, strict=True)]
        return records

    def _derivatives(self, encoded: Sequence[Encoded]) -> Sequence[TokenDerivatives]:
        yardsticks = self.yardsticks
        return token_derivatives(
            self.proxy,
            encoded,
            [group.direction for group in (*yardsticks.parts, *yardsticks.groups)],
            estimator=yardsticks.estimator,
            epsilons=yardsticks.epsilons,
            batch_size=self.batch_size,
        )

    def _total(self, derivative: Float64[Tensor, "yardstick token"]) -> Float64[Tensor, " token"]:
        """Utility of each token by all anchors together."""
        parts, groups = self.yardsticks.parts, self.yardsticks.groups
        whole = derivative[: len(parts)] if parts else derivative
        return self.step_size * (shares_of(parts or groups) @ whole)

    def _record(
        self, sample: Encoded, loss: Float64[Tensor, " token"], derivative: Float64[Tensor, "yardstick token"]
    ) -> Record:
        parts, groups = self.yardsticks.parts, self.yardsticks.groups
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
    if isinstance(columns, str):
        return record if record.reason is not None else Record(reason=columns)
    return record if record.reason is not None else replace(record, columns={**record.columns, **columns})
