"""What long work is at before it can count: "loading the proxy", "anchor gradient". Whoever shows progress listens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_LISTENER: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def begin_phase(name: str) -> None:
    """Say what begins now; nothing happens where nobody listens."""
    if (listener := _LISTENER.get()) is not None:
        listener(name)


@contextlib.contextmanager
def hearing(listener: Callable[[str], None]) -> Iterator[None]:
    """Be told of each phase that begins in the block."""
    before = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(before)
