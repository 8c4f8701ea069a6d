"""What can be measured of a sample beside its utility, because it was asked for."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef, Sample
from onesteptrain.proxy import Encoded, Encoder, Proxy
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.storage.seeds import seeded_bits
from onesteptrain.utility import AnchorGroup
from onesteptrain.utility.answers import represent
from onesteptrain.utility.encoded import encode
from onesteptrain.utility.per_sample import Measure, both, inner_products, per_sample, sketches, squares
from onesteptrain.utility.sketch import make_sketch

MoreColumns = list[Mapping[str, Value] | str]
"""More columns for each sample, or the reason why it has no score."""

_GREY = (128, 128, 128)


class Scored(NamedTuple):
    """Samples that have been scored, for what is measured beside it."""

    samples: Sequence[Sample]
    encoded: Sequence[Encoded]
    records: Sequence[Record]
    signals: Callable[[Sequence[Encoded]], list[dict[str, Value]]]
    """What the scorer would say of the tokens of other samples."""


Extra = Callable[[Scored], MoreColumns]
"""One thing that is measured beside the utility."""


@dataclass(frozen=True)
class Gradients:
    """Length and cosine of each sample's gradient, and a sketch of it, by one backward pass."""

    proxy: Proxy
    reach: float
    """Utility of a gradient of length 1 along the anchors' gradient."""

    dimensions: int
    """Of the sketch; 0 for none."""

    seed: int
    batch_size: int | None
    norms: bool
    """Whether length and cosine are asked for."""

    def __call__(self, scored: Scored) -> MoreColumns:
        """Columns gradient_norm, cosine and sketch."""
        return _by_gradient(self.proxy, scored, self._measure, self._columns, self.batch_size)

    @cached_property
    def _measure(self) -> Measure:
        """The squared length, and then the sketch."""
        if not self.dimensions:
            return squares()
        size = sum(value.numel() for value in self.proxy.parameters.values())
        sketch = make_sketch(size, self.dimensions, seed=self.seed, device=self.proxy.device)
        return both(squares(), sketches(sketch, self.proxy))

    def _columns(self, numbers: Tensor, score: float) -> Mapping[str, Value] | str:
        length = float(numbers[0]) ** 0.5
        if not math.isfinite(length):
            return f"the length of its gradient is {length}; check the sample, or use float32"
        columns: dict[str, Value] = {}
        if self.norms:
            reach = self.reach * length
            columns |= {"gradient_norm": length, "cosine": score / reach if reach else None}
        if self.dimensions:
            columns["sketch"] = numbers[1:].float().numpy()
        return columns


@dataclass(frozen=True)
class GroupGradients:
    """Measures samples along the gradients of all groups of anchors at once, by one backward pass."""

    proxy: Proxy
    names: Sequence[str]
    directions: Mapping[str, Tensor] = field(repr=False)
    """For each parameter the directions of all groups, in the order of their names."""

    step_size: float
    batch_size: int | None

    def __call__(self, scored: Scored) -> MoreColumns:
        """Columns utility.GROUP: s <P grad L_k, grad l_z>."""
        return _by_gradient(self.proxy, scored, inner_products(self.directions), self._columns, self.batch_size)

    def _columns(self, numbers: Tensor, _: float) -> Mapping[str, Value] | str:
        if not numbers.isfinite().all():
            return "its gradient is not finite; check the sample, or use float32"
        utilities = (self.step_size * numbers).tolist()
        return {f"utility.{name}": value for name, value in zip(self.names, utilities, strict=True)}


def stacked(groups: Sequence[AnchorGroup]) -> dict[str, Tensor]:
    """The directions of some groups side by side; zero where a group does not move a parameter."""
    shapes = {name: value for group in groups for name, value in group.direction.items()}
    return {
        name: torch.stack([group.direction.get(name, torch.zeros_like(like)) for group in groups])
        for name, like in shapes.items()
    }


def _by_gradient(
    proxy: Proxy,
    scored: Scored,
    measure: Measure,
    columns: Callable[[Tensor, float], Mapping[str, Value] | str],
    batch_size: int | None,
) -> MoreColumns:
    """Columns from numbers of each sample's gradient and its score; nothing for samples without a score."""
    usable = [sample for sample, record in zip(scored.encoded, scored.records, strict=True) if record.score is not None]
    measured = iter(per_sample(proxy, usable, measure, batch_size=batch_size))

    def of(score: float) -> Mapping[str, Value] | str:
        gradient = next(measured)
        return columns(gradient.numbers, score) if gradient.problem is None else gradient.problem

    return [{} if record.score is None else of(record.score) for record in scored.records]


@dataclass(frozen=True)
class Representations:
    """Where each sample lies in the proxy's space."""

    proxy: Proxy
    batch_size: int | None

    def __call__(self, scored: Scored) -> MoreColumns:
        """Column representation."""
        return [
            vector if isinstance(vector, str) else {"representation": vector.numpy()}
            for vector in represent(self.proxy, scored.encoded, batch_size=self.batch_size)
        ]


@dataclass(frozen=True)
class Ablations:
    """The same sample with other pictures: grey ones of the same size, and those of an anchor."""

    encoder: Encoder
    anchors: Sequence[Sample] = field(repr=False)
    seed: int

    def __call__(self, scored: Scored) -> MoreColumns:
        """Columns blank_utility, blank_loss, swapped_utility and swapped_loss; null where there is no picture."""
        blank = self._measure(scored, [self._blank(sample) for sample in scored.samples], "blank")
        swapped = self._measure(scored, [self._swapped(sample) for sample in scored.samples], "swapped")
        return [{**columns, **more} for columns, more in zip(blank, swapped, strict=True)]

    def _measure(self, scored: Scored, changed: Sequence[Sample | None], name: str) -> list[dict[str, Value]]:
        encoded = [None if sample is None else encode(self.encoder, sample) for sample in changed]
        measured = iter(scored.signals([sample for sample in encoded if isinstance(sample, Encoded)]))
        empty: dict[str, Value] = {"utility": None, "loss": None}
        signals = [next(measured) if isinstance(sample, Encoded) else empty for sample in encoded]
        return [{f"{name}_utility": said["utility"], f"{name}_loss": said["loss"]} for said in signals]

    def _blank(self, sample: Sample) -> Sample | None:
        return with_images(sample, [_grey(image) for image in sample.images]) if sample.images else None

    def _swapped(self, sample: Sample) -> Sample | None:
        """With an anchor's first picture in place of each of its own; which one depends on the sample's id alone."""
        others = [anchor.images[0] for anchor in self._pictured if anchor.uid != sample.uid]
        if not sample.images or not others:
            return None
        other = others[seeded_bits("swap", self.seed, sample.uid) % len(others)]
        return with_images(sample, [other] * len(sample.images))

    @cached_property
    def _pictured(self) -> list[Sample]:
        return [anchor for anchor in self.anchors if anchor.images]


def with_images(sample: Sample, images: Sequence[ImageRef]) -> Sample:
    """The same conversation with other pictures, in reading order."""
    left = iter(images)
    turns = tuple(
        dataclasses.replace(
            turn, parts=tuple(next(left) if isinstance(part, ImageRef) else part for part in turn.parts)
        )
        for turn in sample.turns
    )
    return dataclasses.replace(sample, turns=turns)


def _grey(image: ImageRef) -> ImageRef:
    stream = io.BytesIO()
    Image.new("RGB", load_image(image).size, _GREY).save(stream, "PNG")
    return ImageRef(stream.getvalue(), f"{image.name} blanked")
