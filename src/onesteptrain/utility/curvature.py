"""The second-order part of the utility, from how the anchors' loss bends along a few directions.

A step of size s along d = P g changes the anchor loss L to second order by

    L(w) - L(w - s d) = s <grad L, d> - s^2 / 2 <d, H d> + O(s^3)

The first term is the first-order utility; H, the second derivative of L, is known along few directions only: Lanczos'
method finds, from products of H with vectors, an orthonormal basis Q in which H is tridiagonal, and there
<d, H d> is about <Q'd, T Q'd>. Steps of samples and the anchor gradient have much in common, so that a dozen
directions, begun at the anchor gradient, hold most of it. Each is one gradient of the anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from onesteptrain.errors import ConfigError
from onesteptrain.proxy import Proxy
from onesteptrain.proxy.model import Direction
from onesteptrain.utility.anchoring import AnchorGroup

_SHIFT = 1e-4
"""Of the length of the weights: how far the anchors' gradient is taken from where they stand."""

_EXHAUSTED = 1e-6
"""Of the first product's length: what is left of a product that lies in the directions that are known."""


@dataclass(frozen=True)
class Curvature:
    """How the anchors' loss bends along some directions."""

    basis: Float[Tensor, "direction coordinate"]
    """Orthonormal. It holds as many numbers a direction as there are parameters in scope."""

    bends: Float64[Tensor, "direction direction"]
    """<q, H r> of the directions; tridiagonal."""

    def along(self, inside: Float64[Tensor, " direction"]) -> float:
        """<d, H d>, as far as d lies in the directions.

        Args:
            inside: Inner products of d with the directions, on the CPU.
        """
        return float(inside @ self.bends @ inside)

    def forgotten(self) -> Curvature:
        """The bends without their directions, which take much memory."""
        return Curvature(self.basis.new_empty(len(self.basis), 0), self.bends)

    def named(self, proxy: Proxy) -> dict[str, Float[Tensor, "direction ..."]]:
        """The directions, parameter by parameter."""
        sizes = [value.numel() for value in proxy.parameters.values()]
        parts = torch.split(self.basis, sizes, dim=1)
        return {
            name: part.view(-1, *value.shape)
            for (name, value), part in zip(proxy.parameters.items(), parts, strict=True)
        }


def measure_curvature(proxy: Proxy, anchors: AnchorGroup, *, directions: int) -> Curvature:
    """Find directions along which the anchors' loss bends, by Lanczos' method from the direction of the anchors.

    Products with H are differences of the anchor gradient at weights moved by a ten-thousandth of their length.

    Args:
        proxy: Model at the weights to measure at; they are bit for bit the same afterwards.
        anchors: All anchors, with their batches.
        directions: How many, at least 1; each costs a gradient of the anchors. Fewer come out where there are no more.

    Raises:
        ConfigError: the anchor gradient is zero or not finite.

    Source: Lanczos (1950), as in Golub and Van Loan, Matrix Computations, section 10.1, with full
    reorthogonalisation.
    """
    start, here = _flat(proxy, anchors.direction), _flat(proxy, proxy.gradient(anchors.batches)[1])
    size = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < size < float("inf"):
        raise ConfigError(f"the anchor gradient has length {size}; check the anchors and the scope")
    shift = _SHIFT * float(torch.linalg.vector_norm(_flat(proxy, dict(proxy.parameters)).detach()))
    basis, middle, beside = start.new_empty(directions, len(start)), [], []
    basis[0] = start / size
    for known in range(1, directions + 1):
        with proxy.shifted(_named(proxy, basis[known - 1]), shift):
            product = _flat(proxy, proxy.gradient(anchors.batches)[1])
        product.sub_(here).div_(shift)
        middle.append(float(product @ basis[known - 1]))
        for _ in range(2):  # once leaves round-off behind
            for one in basis[:known]:
                product -= (product @ one) * one
        left = float(product.norm())
        beside.append(left)
        if known == directions or left <= _EXHAUSTED * beside[0] or not left < float("inf"):
            break
        basis[known] = product / left
    return Curvature(basis[: len(middle)], _tridiagonal(middle, beside[:-1]))


def _flat(proxy: Proxy, vector: Direction) -> Float[Tensor, " coordinate"]:
    """All coordinates in scope in a row, in the order of the proxy; zero where a parameter has no entry."""
    kind = torch.promote_types(proxy.dtype, torch.float32)
    parts = [
        vector[name].to(kind).flatten() if name in vector else value.new_zeros(value.numel(), dtype=kind)
        for name, value in proxy.parameters.items()
    ]
    return torch.cat(parts)


def _named(proxy: Proxy, vector: Tensor) -> dict[str, Tensor]:
    """A vector as a direction in weight space."""
    parts = torch.split(vector, [value.numel() for value in proxy.parameters.values()])
    return {name: part.view_as(value) for (name, value), part in zip(proxy.parameters.items(), parts, strict=True)}


def _tridiagonal(middle: list[float], beside: list[float]) -> Float64[Tensor, "direction direction"]:
    whole = torch.diag(torch.tensor(middle, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        whole = whole + torch.diag(off, 1) + torch.diag(off, -1)
    return whole
