"""What was learned of a model by running it on samples: the one place for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from onesteptrain.proxy.acceleration.prefix_cache import NO_PREFIX, Prefix
from onesteptrain.proxy.memory import until_it_fits

T = TypeVar("T")

Kind = tuple[str, ...]
"""Names of the inputs of a batch: samples with and without images run through different parts of a model."""

_TRIES = 3
"""Samples that may show nothing, before no others are tried."""


@dataclass
class ModelProbe(Generic[T]):
    """One trait of a model, which may differ from kind to kind of batch."""

    otherwise: T
    """What is assumed where nothing is known: what asks most of a pass, and is always right."""

    known: dict[Kind, T] = field(default_factory=dict)
    _too_large: dict[Kind, int] = field(default_factory=dict)
    """Tokens of the smallest sample that there was no memory to try."""

    _unclear: Counter[Kind] = field(default_factory=Counter)

    def of(self, kind: Kind) -> T:
        """What holds for a kind of batch, as far as it is known."""
        return self.known.get(kind, self.otherwise)

    def learn(self, kind: Kind, tokens: int, find: Callable[[], T | None]) -> None:
        """Find out what holds for a kind of batch, unless memory has not held a sample of this size before.

        Args:
            kind: The kind of batch.
            tokens: Of the sample that is tried.
            find: Tries it; None if it shows nothing, as one does whose logits are no numbers.
        """

        def give_up(_: object) -> list[Any]:
            self._too_large[kind] = tokens
            return []

        if tokens < self._too_large.get(kind, tokens + 1):
            until_it_fits([find], lambda find: self._settle(kind, find()), give_up)

    def _settle(self, kind: Kind, trait: T | None) -> None:
        if trait is not None:
            self.known[kind] = trait
            return
        self._unclear[kind] += 1
        if self._unclear[kind] == _TRIES:
            self.known[kind] = self.otherwise


@dataclass
class ModelProbes:
    """All that was learned of a model and its scope while working."""

    positions: ModelProbe[bool] = field(default_factory=lambda: ModelProbe(False))
    """Whether positions may be worked out with a batch."""

    causal: ModelProbe[bool] = field(default_factory=lambda: ModelProbe(False))
    """Whether tokens see nothing that follows them."""

    prefix: ModelProbe[Prefix] = field(default_factory=lambda: ModelProbe(NO_PREFIX))
    """What the scope does not reach."""

    per_sample: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    """By kind of batch, how it is taken apart into the gradients of its samples; see `utility.per_sample`."""
