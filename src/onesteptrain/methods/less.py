"""LESS: how well the update that a sample would give during the warm-up agrees with the anchors' gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.data.pool import Sample
from onesteptrain.errors import AnchorError, ConfigError, ScoreError
from onesteptrain.methods import Scorer, Setting, check_batch_size, finish_record
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.utility.checkpoints import WarmCheckpoint, read_checkpoint
from onesteptrain.utility.encoded import anchor_groups, records_of
from onesteptrain.utility.gradients import adam_update
from onesteptrain.utility.per_sample import Measure, Measured, Piece, coordinates, of_whole, per_sample, sketches
from onesteptrain.utility.sketch import make_sketch


@dataclass(frozen=True)
class Less:
    """LESS (arXiv:2402.04333): cosine of the sample's Adam update with the anchors' gradients, over the warm-up."""

    uses_checkpoints: ClassVar[bool] = True

    group_by: str | None = None
    """Column of the anchors that splits them into groups; the score is the similarity to the nearest group."""

    dimensions: int = 8192
    """Dimensions that gradients are projected to at random; 0 compares them as they are."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as batch_tokens allows."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
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
        # a whole gradient for each sample of a batch would be too much for most memories
        batch_size = self.batch_size if self.dimensions else 1
        groups = anchor_groups(proxy.encoder, anchors, self.group_by)
        stages = []
        for checkpoint in checkpoints:
            with proxy.holding(checkpoint.weights):
                features = torch.stack(
                    [_anchor_feature(proxy, members, project, batch_size) for members in groups.values()]
                )
            stages.append(_Stage(checkpoint, checkpoint.learning_rate / total, features))
        return _Scorer(proxy, list(groups), stages, project, batch_size)


class _Stage(NamedTuple):
    """One checkpoint, and what the anchors look like at it."""

    checkpoint: WarmCheckpoint
    weight: float
    """Its share of the learning rates."""

    anchors: Float64[Tensor, "group dimension"]
    """Mean of the normalised features of each group: a product with it is the mean of the cosines."""


class _Compared(NamedTuple):
    cosines: Float64[Tensor, " group"]
    loss: float


@dataclass(frozen=True)
class _Scorer:
    proxy: Proxy
    groups: Sequence[str]
    stages: Sequence[_Stage] = field(repr=False)
    project: Measure
    batch_size: int | None

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        return records_of(self.proxy.encoder, samples, self._measure)

    def _measure(self, samples: Sequence[Encoded]) -> list[Record]:
        """Go through the stages, the weights of each put in once for all samples."""
        by_stage = [self._at(stage, samples) for stage in self.stages]
        by_sample = zip(*by_stage, strict=True)
        return [self._record(sample, stages) for sample, stages in zip(samples, by_sample, strict=True)]

    def _at(self, stage: _Stage, samples: Sequence[Encoded]) -> list[_Compared | str]:
        first, second = (
            {name: value.to(self.proxy.device) for name, value in moments.items()}
            for moments in (stage.checkpoint.first_moments, stage.checkpoint.second_moments)
        )

        def of(piece: Piece) -> Tensor:
            moments = {piece.name: first[piece.name]}, {piece.name: second[piece.name]}
            return self.project.of(piece._replace(values=adam_update({piece.name: piece.values}, *moments)[piece.name]))

        update = self.project._replace(of=of_whole(of, self.proxy))
        with self.proxy.holding(stage.checkpoint.weights):
            updates = _in_turn(self.proxy, samples, update, self.batch_size)
            return [self._compared(stage, sample_update) for sample_update in updates]

    def _compared(self, stage: _Stage, update: Measured) -> _Compared | str:
        try:
            return _Compared(stage.anchors @ _feature(update), update.loss)
        except ScoreError as error:
            return f"at step {stage.checkpoint.step} of the warm-up {error}"

    def _record(self, sample: Encoded, at_stages: Sequence[_Compared | str]) -> Record:
        compared = [measured for measured in at_stages if isinstance(measured, _Compared)]
        if len(compared) < len(at_stages):
            return Record(reason=next(reason for reason in at_stages if isinstance(reason, str)))
        similarity = sum(
            (stage.weight * measured.cosines for stage, measured in zip(self.stages, compared, strict=True)),
            torch.zeros(len(self.groups), dtype=torch.float64),
        )
        columns: dict[str, Value] = {}
        if len(self.groups) > 1 or self.groups[0]:
            columns |= {f"similarity.{name}": float(value) for name, value in zip(self.groups, similarity, strict=True)}
        return finish_record(sample, float(similarity.max()), {**columns, "loss": compared[-1].loss})


def _projection(proxy: Proxy, dimensions: int, seed: int) -> Measure:
    """The gradient in fewer dimensions; as it is for 0."""
    if not dimensions:
        return coordinates(proxy)
    size = sum(value.numel() for value in proxy.parameters.values())
    return sketches(make_sketch(size, dimensions, seed=seed, device=proxy.device), proxy)


def _anchor_feature(
    proxy: Proxy, members: Sequence[Encoded], project: Measure, batch_size: int | None
) -> Float64[Tensor, " dimension"]:
    """Mean of the normalised gradients of some anchors, at the present weights."""
    total = torch.zeros((), dtype=torch.float64)
    for gradient in _in_turn(proxy, members, project, batch_size):
        try:
            total = total + _feature(gradient)
        except ScoreError as error:
            raise AnchorError(f"an anchor cannot be used: {error}; draw others") from error
    return total / len(members)


def _in_turn(proxy: Proxy, samples: Sequence[Encoded], measure: Measure, batch_size: int | None) -> Iterator[Measured]:
    """Measure all samples at once; if a batch is one sample, one at a time, so that memory holds no more."""
    for start in range(0, len(samples), 1 if batch_size == 1 else max(1, len(samples))):
        part = samples[start : start + 1] if batch_size == 1 else samples
        yield from per_sample(proxy, part, measure, batch_size=batch_size)


def _feature(measured: Measured) -> Float64[Tensor, " dimension"]:
    """What was measured, with length 1.

    Raises:
        ScoreError: it has no direction.
    """
    if measured.problem is not None:
        raise ScoreError(measured.problem)
    length = float(measured.numbers.norm())
    if not 0 < length < math.inf:
        raise ScoreError(f"its gradient has length {length}; check the sample, or use float32")
    return measured.numbers / length
