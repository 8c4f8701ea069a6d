"""What can be measured of a sample beside its utility, because it was asked for."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef, Sample
from onesteptrain.proxy import Encoded, Encoder, Proxy
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.storage.seeds import seeded_bits
from onesteptrain.utility.answers import represent
from onesteptrain.utility.encoded import encode
from onesteptrain.utility.per_sample import Measure, Measured, both, per_sample, sketches, squares
from onesteptrain.utility.sketch import make_sketch

if TYPE_CHECKING:
    from onesteptrain.methods.one_step.first_order import FirstOrder

Found = list[Mapping[str, Value] | str]
"""More columns for each sample, or the reason why it has no score."""

_GREY = (128, 128, 128)


class Extra(Protocol):
    """One thing that is measured beside the utility."""

    def __call__(
        self, scorer: FirstOrder, samples: Sequence[Sample], encoded: Sequence[Encoded], records: Sequence[Record], /
    ) -> Found:
        """More columns for each of some samples."""


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

    def __call__(
        self, scorer: FirstOrder, samples: Sequence[Sample], encoded: Sequence[Encoded], records: Sequence[Record], /
    ) -> Found:
        """Columns gradient_norm, cosine and sketch."""
        usable = [sample for sample, record in zip(encoded, records, strict=True) if record.score is not None]
        measured = iter(per_sample(self.proxy, usable, self._measure, batch_size=self.batch_size))
        return [{} if record.score is None else self._columns(next(measured), record.score) for record in records]

    @cached_property
    def _measure(self) -> Measure:
        """The squared length, and then the sketch."""
        if not self.dimensions:
            return squares()
        size = sum(value.numel() for value in self.proxy.parameters.values())
        sketch = make_sketch(size, self.dimensions, seed=self.seed, device=self.proxy.device)
        return both(squares(), sketches(sketch, self.proxy))

    def _columns(self, found: Measured, score: float) -> Mapping[str, Value] | str:
        if found.problem is not None:
            return found.problem
        length = float(found.numbers[0]) ** 0.5
        if not math.isfinite(length):
            return f"the length of its gradient is {length}; check the sample, or use float32"
        columns: dict[str, Value] = {}
        if self.norms:
            reach = self.reach * length
            columns |= {"gradient_norm": length, "cosine": score / reach if reach else None}
        if self.dimensions:
            columns["sketch"] = found.numbers[1:].float().numpy()
        return columns


@dataclass(frozen=True)
class Representations:
    """Where each sample lies in the proxy's space."""

    proxy: Proxy
    batch_size: int | None

    def __call__(
        self, scorer: FirstOrder, samples: Sequence[Sample], encoded: Sequence[Encoded], records: Sequence[Record], /
    ) -> Found:
        """Column representation."""
        return [
            vector if isinstance(vector, str) else {"representation": vector.numpy()}
            for vector in represent(self.proxy, encoded, batch_size=self.batch_size)
        ]


@dataclass(frozen=True)
class Ablations:
    """The same sample with other pictures: grey ones of the same size, and those of an anchor."""

    encoder: Encoder
    anchors: Sequence[Sample] = field(repr=False)
    seed: int

    def __call__(
        self, scorer: FirstOrder, samples: Sequence[Sample], encoded: Sequence[Encoded], records: Sequence[Record], /
    ) -> Found:
        """Columns blank_utility, blank_loss, swapped_utility and swapped_loss; null where there is no picture."""
        blank = self._measure(scorer, [self._blank(sample) for sample in samples], "blank")
        swapped = self._measure(scorer, [self._swapped(sample) for sample in samples], "swapped")
        return [{**one, **two} for one, two in zip(blank, swapped, strict=True)]

    def _measure(self, scorer: FirstOrder, changed: Sequence[Sample | None], name: str) -> list[dict[str, Value]]:
        encoded = [None if sample is None else encode(self.encoder, sample) for sample in changed]
        found = iter(scorer.signals([one for one in encoded if isinstance(one, Encoded)]))
        empty: dict[str, Value] = {"utility": None, "loss": None}
        measured = [next(found) if isinstance(one, Encoded) else empty for one in encoded]
        return [{f"{name}_utility": one["utility"], f"{name}_loss": one["loss"]} for one in measured]

    def _blank(self, sample: Sample) -> Sample | None:
        return with_images(sample, [_grey(image) for image in sample.images]) if sample.images else None

    def _swapped(self, sample: Sample) -> Sample | None:
        """With an anchor's first picture in place of each of its own; which one depends on the sample's id alone."""
        others = [one.images[0] for one in self._pictured if one.uid != sample.uid]
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
