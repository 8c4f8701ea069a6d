"""A random projection that keeps inner products: a count sketch, computed block by block.

The coordinates of a vector x are cut into blocks of k. Each block is shuffled, its signs are flipped, both at random,
and all blocks are added up. With the sign s_i and the place h(i) of coordinate i,

    sketch(x)_j = sum of s_i x_i over all i with h(i) = j

so that E <sketch(x), sketch(y)> = <x, y>, and the variance is at most (|x|^2 |y|^2 + <x, y>^2) / k, as of a dense
Rademacher matrix. No matrix of D x k is ever made: a coordinate costs one place and one sign. Since no two coordinates
of a block meet, nothing is added in an order that a device could choose: the same seed gives the same bits.

Source: count sketch, Weinberger et al. (arXiv:0902.2206), section 3; sparse Johnson-Lindenstrauss maps, Kane and Nelson
(arXiv:1012.1577).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor
from torch.nn.functional import pad

_COORDINATES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Sketch:
    """A linear map from `size` coordinates to k dimensions."""

    size: int
    places: Int32[Tensor, "block dimension"]
    """Of each block, which coordinate goes to which dimension."""

    signs: Int8[Tensor, "block dimension"]

    def __call__(self, vector: Float[Tensor, " coordinate"]) -> Float[Tensor, " dimension"]:
        """Project one vector of `size` coordinates; sums are in the vector's own type."""
        blocks, dimensions = self.places.shape
        padded = pad(vector, (0, blocks * dimensions - self.size)).view(blocks, dimensions)
        total = vector.new_zeros(dimensions)
        step = max(1, _COORDINATES_AT_ONCE // dimensions)
        for start in range(0, blocks, step):
            part = slice(start, start + step)
            total += (padded[part] * self.signs[part]).gather(1, self.places[part].long()).sum(0)
        return total

    def part(self, vectors: Float[Tensor, "sample part"], start: int) -> Float[Tensor, "sample dimension"]:
        """What the coordinates from `start` on add to the sketches of some vectors."""
        dimensions = self.places.shape[1]
        first, before = divmod(start, dimensions)
        count = -(-(before + vectors.shape[1]) // dimensions)
        padded = pad(vectors, (before, count * dimensions - before - vectors.shape[1])).view(
            len(vectors), count, dimensions
        )
        total = vectors.new_zeros(len(vectors), dimensions)
        step = max(1, _COORDINATES_AT_ONCE // (dimensions * max(1, len(vectors))))
        for at in range(0, count, step):
            blocks = slice(first + at, first + min(at + step, count))
            signed = padded[:, at : at + step] * self.signs[blocks]
            total += signed.gather(2, self.places[blocks].long().expand_as(signed)).sum(1)
        return total


def make_sketch(size: int, dimensions: int, *, seed: int, device: torch.device) -> Sketch:
    """Draw a sketch; it depends on the sizes and the seed alone, not on the device. It takes five bytes a coordinate.

    Args:
        size: Coordinates of the vectors, at least 1.
        dimensions: Dimensions of their sketches, at least 1.
        seed: Fixes places and signs.
        device: Where the vectors are.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-size // dimensions)
    places = torch.empty(blocks, dimensions, dtype=torch.int32)
    for block in places:
        block.copy_(torch.randperm(dimensions, generator=generator, dtype=torch.int32))
    signs = torch.randint(0, 2, (blocks, dimensions), generator=generator, dtype=torch.int8) * 2 - 1
    return Sketch(size, places.to(device), signs.to(device))
