"""LESS: how well the update that a sample would give during the warm-up agrees with the anchors' gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.errors import AnchorError, ConfigError, ScoreError
from onesteptrain.methods import Scorer, Setting
from onesteptrain.pool import Sample
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.scores import Record, Value
from onesteptrain.utility.checkpoints import WarmCheckpoint, read_checkpoint
from onesteptrain.utility.encoded import anchor_groups, records_of
from onesteptrain.utility.gradients import adam_update, flat
from onesteptrain.utility.sketch import make_sketch

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Less:
    """LESS (arXiv:2402.04333): cosine of the sample's Adam update with the anchors' gradients, over the warm-up."""

    uses_checkpoints: ClassVar[bool] = True

    group_by: str | None = None
    """Column of the anchors that splits them into groups; the score is the similarity to the nearest group."""

    dimensions: int = 8192
    """Dimensions that gradients are projected to at random; 0 compares them as they are."""

    def __post_init__(self) -> None:
        if self.dimensions < 0:
            raise ConfigError(f"dimensions is {self.dimensions}; it must be at least 1, or 0 for no projection")

    def prepare(self, setting: Setting, /) -> Scorer:
        """Read the checkpoints of the warm-up, and measure the anchors at each.

        Raises:
            AnchorError: an anchor cannot be encoded, has no such group, or no finite loss and gradient.
            ConfigError: there are no checkpoints, or the warm-up learned at a rate of 0.
            ModelError: a checkpoint does not fit the proxy.
        """
        proxy = setting.need_proxy("less")
        anchors = setting.need_anchors("less")
        checkpoints = [read_checkpoint(folder, proxy) for folder in setting.need_checkpoints("less")]
        total = math.fsum(checkpoint.learning_rate for checkpoint in checkpoints)
        if not total > 0:
            raise ConfigError("the learning rates of all checkpoints are 0; warm up for more steps")
        project = _projection(proxy, self.dimensions, setting.seed)
        groups = anchor_groups(proxy.encoder, anchors, self.group_by)
        stages = []
        for checkpoint in checkpoints:
            with proxy.holding(checkpoint.weights):
                features = torch.stack([_anchor_feature(proxy, members, project) for members in groups.values()])
            stages.append(_Stage(checkpoint, checkpoint.learning_rate / total, features))
        return _Scorer(proxy, list(groups), stages, project)


class _Stage(NamedTuple):
    """One checkpoint, and what the anchors look like at it."""

    checkpoint: WarmCheckpoint
    weight: float
    """Its share of the learning rates."""

    anchors: Float64[Tensor, "group dimension"]
    """Mean of the normalised features of each group: a product with it is the mean of the cosines."""


class _Measured(NamedTuple):
    cosines: Float64[Tensor, " group"]
    loss: float


@dataclass(frozen=True)
class _Scorer:
    proxy: Proxy
    groups: Sequence[str]
    stages: Sequence[_Stage] = field(repr=False)
    project: Projection

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        return records_of(self.proxy.encoder, samples, self._measure)

    def _measure(self, samples: Sequence[Encoded]) -> list[Record]:
        """Go through the stages, the weights of each put in once for all samples."""
        by_stage = [self._at(stage, samples) for stage in self.stages]
        return [self._record(sample, found) for sample, found in zip(samples, zip(*by_stage, strict=True), strict=True)]

    def _at(self, stage: _Stage, samples: Sequence[Encoded]) -> list[_Measured | str]:
        first, second = (
            {name: value.to(self.proxy.device) for name, value in moments.items()}
            for moments in (stage.checkpoint.first_moments, stage.checkpoint.second_moments)
        )

        def one(sample: Encoded) -> _Measured | str:
            try:
                loss, gradient = self.proxy.gradient([self.proxy.batch([sample])])
                feature = _feature(self.proxy, adam_update(gradient, first, second), self.project)
            except ScoreError as error:
                return f"at step {stage.checkpoint.step} of the warm-up {error}"
            return _Measured(stage.anchors @ feature, loss)

        with self.proxy.holding(stage.checkpoint.weights):
            return [one(sample) for sample in samples]

    def _record(self, sample: Encoded, found: Sequence[_Measured | str]) -> Record:
        measured = [one for one in found if isinstance(one, _Measured)]
        if len(measured) < len(found):
            return Record(reason=next(one for one in found if isinstance(one, str)))
        similarity = sum(
            (stage.weight * one.cosines for stage, one in zip(self.stages, measured, strict=True)),
            torch.zeros(len(self.groups), dtype=torch.float64),
        )
        columns: dict[str, Value] = {}
        if len(self.groups) > 1 or self.groups[0]:
            columns |= {f"similarity.{name}": float(value) for name, value in zip(self.groups, similarity, strict=True)}
        columns |= {
            "loss": measured[-1].loss,
            "answer_tokens": int(sample.answer.sum()),
            "tokens": sample.tokens,
        }
        return Record(float(similarity.max()), columns=columns)


def _projection(proxy: Proxy, dimensions: int, seed: int) -> Projection:
    if not dimensions:
        return lambda vector: vector
    size = sum(value.numel() for value in proxy.parameters.values())
    return make_sketch(size, dimensions, seed=seed, device=proxy.device)


def _anchor_feature(proxy: Proxy, members: Sequence[Encoded], project: Projection) -> Float64[Tensor, " dimension"]:
    """Mean of the normalised gradients of some anchors, at the present weights; memory holds one at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for anchor in members:
        try:
            _, gradient = proxy.gradient([proxy.batch([anchor])])
            total = total + _feature(proxy, gradient, project)
        except ScoreError as error:
            raise AnchorError(f"an anchor cannot be used: {error}; draw others") from error
    return total / len(members)


def _feature(proxy: Proxy, vector: Mapping[str, Tensor], project: Projection) -> Float64[Tensor, " dimension"]:
    """A vector over all parameters, projected, on the CPU, with length 1.

    Raises:
        ScoreError: it has no direction.
    """
    feature = project(flat(proxy, vector)).cpu().double()
    length = float(feature.norm())
    if not 0 < length < math.inf:
        raise ScoreError(f"its gradient has length {length}; check the sample, or use float32")
    return feature / length
