"""One-Step-Train: score a sample by what one simulated training step on it does to the anchor loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.methods import Scorer, Setting
from onesteptrain.pool import Sample
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.scores import Record, Value
from onesteptrain.utility import (
    AnchorGroup,
    choose_epsilon,
    exact_utility,
    measure_anchors,
    read_preconditioner,
    token_derivatives,
)
from onesteptrain.utility.encoded import anchor_groups, records_of

_PROBES = 16


@dataclass(frozen=True)
class OneStep:
    """One-step utility (arXiv:2605.07488): the fall of the anchor loss after one step on the sample."""

    estimator: Literal["auto", "exact", "fd", "jvp"] = "auto"
    """exact takes the step and measures the anchors; fd and jvp are first-order and need forward passes only:
    fd by a central difference, jvp in forward mode. auto is fd, or jvp in half precision."""

    step_size: float = 1e-3
    """Learning rate of the simulated step."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Rule of the step; adam divides each coordinate by the root of its second moment from the warm-up."""

    group_by: str | None = None
    """Column of the anchors that splits them into groups, each with a column utility.GROUP."""

    fd_epsilon: float | None = None
    """Shift of the central difference along the anchor gradient; by default chosen on the anchors."""

    batch_size: int = 16
    """Samples in one pass."""

    store_tokens: bool = False
    """Keep the utility of every answer token, in the column token_utility."""

    def __post_init__(self) -> None:
        sizes = {"step_size": self.step_size} | ({} if self.fd_epsilon is None else {"fd_epsilon": self.fd_epsilon})
        for name, size in sizes.items():
            if not 0 < size < math.inf:
                raise ConfigError(f"{name} is {size}; it must be positive and finite")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.estimator == "exact" and self.store_tokens:
            raise ConfigError("estimator exact has no utility per token; use fd or jvp with store_tokens")

    def prepare(self, setting: Setting, /) -> Scorer:
        """Measure the anchors once, for all samples.

        Raises:
            AnchorError: an anchor cannot be encoded, or has no such group.
            ConfigError: the estimator cannot work with the proxy's type of weights.
            ScoreError: the anchor loss is not finite.
        """
        proxy = setting.need_proxy("one_step")
        estimator = self._estimator(proxy)
        groups = anchor_groups(proxy.encoder, setting.need_anchors("one_step"), self.group_by)
        preconditioner = {}
        if self.optimizer == "adam":
            if setting.second_moments is None:
                raise ConfigError(
                    "optimizer adam needs the second moments of a warm-up; give the folder of `ost warmup` as --proxy"
                )
            preconditioner = read_preconditioner(setting.second_moments, proxy)
        anchors = measure_anchors(proxy, groups, preconditioner=preconditioner, batch_size=self.batch_size)
        if estimator == "exact":
            return _Exact(self, proxy, anchors, preconditioner)
        epsilons = [self._epsilon(proxy, groups[group.name], group, estimator) for group in anchors]
        return _FirstOrder(self, proxy, anchors, estimator, epsilons)

    def _estimator(self, proxy: Proxy) -> Literal["exact", "fd", "jvp"]:
        half = proxy.dtype in (torch.bfloat16, torch.float16)
        if self.estimator == "auto":
            return "jvp" if half else "fd"
        if half and self.estimator != "jvp":
            raise ConfigError(
                f"estimator {self.estimator} moves the weights, and {proxy.dtype} weights swallow a small step; "
                "use --dtype float32, or --estimator jvp"
            )
        return self.estimator

    def _epsilon(self, proxy: Proxy, members: Sequence[Encoded], group: AnchorGroup, estimator: str) -> float:
        if estimator == "jvp":
            return 0.0
        return self.fd_epsilon or choose_epsilon(proxy, members[:_PROBES], group.direction, batch_size=self.batch_size)


@dataclass(frozen=True)
class _FirstOrder:
    options: OneStep
    proxy: Proxy
    anchors: Sequence[AnchorGroup]
    estimator: Literal["fd", "jvp"]
    epsilons: Sequence[float]

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        return records_of(self.proxy.encoder, samples, self._measure)

    def _measure(self, samples: Sequence[Encoded]) -> list[Record]:
        measured = token_derivatives(
            self.proxy,
            samples,
            [group.direction for group in self.anchors],
            estimator=self.estimator,
            epsilons=self.epsilons,
            batch_size=self.options.batch_size,
        )
        return [self._record(sample, *found) for sample, found in zip(samples, measured, strict=True)]

    def _record(
        self, sample: Encoded, loss: Float64[Tensor, " token"], derivative: Float64[Tensor, "group token"]
    ) -> Record:
        shares = torch.tensor([group.share for group in self.anchors], dtype=torch.float64)
        per_group = self.options.step_size * derivative
        tokens = shares @ per_group
        signals: dict[str, Value] = {
            "harm": float(tokens.clamp(max=0).mean()),
            "gain": float(tokens.clamp(min=0).mean()),
        }
        if self.options.store_tokens:
            signals["token_utility"] = tokens.float().tolist()
        return _finish(sample, float(loss.mean()), per_group.mean(1), self.anchors, signals)


@dataclass(frozen=True)
class _Exact:
    options: OneStep
    proxy: Proxy
    anchors: Sequence[AnchorGroup]
    preconditioner: Mapping[str, Tensor] = field(repr=False)

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        return records_of(self.proxy.encoder, samples, lambda encoded: [self._record(one) for one in encoded])

    def _record(self, sample: Encoded) -> Record:
        try:
            loss, falls = exact_utility(
                self.proxy,
                sample,
                self.anchors,
                step_size=self.options.step_size,
                preconditioner=self.preconditioner,
            )
        except ScoreError as error:
            return Record(reason=str(error))
        return _finish(sample, loss, falls, self.anchors, {})


def _finish(
    sample: Encoded,
    loss: float,
    utilities: Float64[Tensor, " group"],
    anchors: Sequence[AnchorGroup],
    signals: Mapping[str, Value],
) -> Record:
    utility = float(sum(group.share * float(value) for group, value in zip(anchors, utilities, strict=True)))
    if not (math.isfinite(loss) and math.isfinite(utility)):
        return Record(reason=f"its loss is {loss} and its utility {utility}; check the sample, or use float32")
    columns: dict[str, Value] = {"utility": utility, **signals, "loss": loss}
    if len(anchors) > 1 or anchors[0].name:
        columns |= {f"utility.{group.name}": float(value) for group, value in zip(anchors, utilities, strict=True)}
    columns |= {"answer_tokens": int(sample.answer.sum()), "tokens": sample.tokens}
    return Record(utility, columns=columns)
