"""Traits of a model that are found out by looking at samples; what could not be seen yet stays open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from onesteptrain.proxy.memory import clear_device_cache, out_of_memory

T = TypeVar("T")

Kind = tuple[str, ...]
"""Names of the inputs of a batch: samples with and without images run through different parts of a model."""

_LOOKS = 3
"""Samples that may show nothing, before no others are looked at."""


@dataclass
class Trait(Generic[T]):
    """One trait of a model, which may differ from kind to kind of batch."""

    otherwise: T
    """What is assumed where nothing is known: what asks most of a pass, and is always right."""

    known: dict[Kind, T] = field(default_factory=dict)
    _too_large: dict[Kind, int] = field(default_factory=dict)
    """Tokens of the smallest sample that there was no memory to look at."""

    _unclear: Counter[Kind] = field(default_factory=Counter)

    def of(self, kind: Kind) -> T:
        """What holds for a kind of batch, as far as it is known."""
        return self.known.get(kind, self.otherwise)

    def look(self, kind: Kind, tokens: int, find: Callable[[], T | None]) -> None:
        """Find out what holds for a kind of batch, unless memory has not held a sample of this size before.

        Args:
            kind: The kind of batch.
            tokens: Of the sample that is looked at; where memory does not hold what it takes, a smaller one may do.
            find: Looks at the sample; None if it shows nothing, as one does whose logits are no numbers.
        """
        if tokens >= self._too_large.get(kind, tokens + 1):
            return
        try:
            found = find()
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._too_large[kind] = tokens
        else:
            self._settle(kind, found)
            return
        clear_device_cache()  # after the error has let go of its tensors

    def _settle(self, kind: Kind, found: T | None) -> None:
        if found is not None:
            self.known[kind] = found
            return
        self._unclear[kind] += 1
        if self._unclear[kind] == _LOOKS:
            self.known[kind] = self.otherwise
