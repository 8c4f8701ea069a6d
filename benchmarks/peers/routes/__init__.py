"""The contenders: each gives the inner product of a row's gradient with the mean gradient of each anchor group.

A route is a function of a loaded case and a clock, in a module of its own, imported in the contender's process alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """Where a contender is, and what it can take."""

    module: str
    function: str
    rows: int | None = None
    """How many rows it is measured on, where all would take too long."""

    attention: str = "sdpa"
    """The fastest kernel that it runs with."""

    compiled: bool = False
    """Whether the blocks of the model are compiled, as by `--set compile=true`."""


ROUTES: Mapping[str, Route] = {
    "ours, fd": Route("ours", "fd"),
    "ours, jvp": Route("ours", "jvp"),
    "ours, gradient": Route("ours", "gradient"),
    "ours, fd, compiled": Route("ours", "fd", compiled=True),
    "autograd loop": Route("autograd", "loop"),
    "kronfluence": Route("kronfluence_route", "score"),
    "bergson": Route("bergson_route", "gradients"),
    "bergson, forward mode": Route("bergson_route", "forward_mode", attention="eager"),
    "dattri-llm": Route("dattri_llm_route", "score"),
    "dattri-llm, compiled": Route("dattri_llm_route", "score", compiled=True),
    "dattri": Route("dattri_route", "score", rows=16, attention="eager"),
    "LESS, gradients": Route("less_route", "gradients"),
    "LESS, projected": Route("less_route", "projected", rows=16),
}
