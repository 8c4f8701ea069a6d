"""Work through samples in batches that fit into memory, whatever the batch size that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from onesteptrain.proxy import Encoded, Proxy, in_batches
from onesteptrain.proxy.memory import clear_device_cache, out_of_memory
from onesteptrain.proxy.model import Room

T = TypeVar("T")

Batches = list[list[int]]
"""Positions of the samples of each batch."""


def in_memory(
    proxy: Proxy,
    samples: Sequence[Encoded],
    work: Callable[[Batches], dict[int, T]],
    *,
    batch_size: int | None,
    at_once: int = 1,
    room: Room | None = None,
) -> dict[int, T]:
    """Measure samples in batches of similar length; a batch for which there is no memory is split and tried again.

    Args:
        proxy: It says how many tokens fit, and remembers if they do not, so that later batches begin there.
        samples: What is measured.
        work: Measures some batches; what it raised for want of memory it must have left no trace of.
        batch_size: Most samples in one pass; None leaves that to the proxy.
        at_once: Batches that are given to one call.
        room: What remembers how many fit, where that is not a matter of the proxy alone.

    Returns:
        What came out, by the position of the sample; one that does not fit even alone is not in it.
    """
    found: dict[int, T] = {}
    room = room or proxy.room
    most = proxy.rows_at_once(batch_size)
    batches = in_batches(samples, min(most, room.samples or most), room.tokens)
    waiting = [batches[start : start + at_once] for start in range(0, len(batches), at_once)][::-1]
    while waiting:
        group = waiting.pop()
        if len(group) > (room.together or at_once):
            waiting += _halves(group)
            continue
        try:
            found |= work(group)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            waiting += _split(group, samples, room)
        else:
            continue
        clear_device_cache()  # after the error has let go of its tensors
    return found


def _split(group: Batches, samples: Sequence[Encoded], room: Room) -> list[Batches]:
    """Smaller work: fewer batches, then halves of the only one; nothing for a single sample."""
    if len(group) > 1:
        room.together = len(group) // 2
        return _halves(group)
    (batch,) = group
    half = len(batch) // 2
    room.together = None  # it was not for their number that several did not fit
    if not half:
        return []
    if room.tokens is None:
        room.samples = half
    else:
        room.tokens = min(room.tokens, half * max(samples[index].tokens for index in batch))
    return [[batch[half:]], [batch[:half]]]


def _halves(group: Batches) -> list[Batches]:
    """The second half first: what waits is taken from the end."""
    half = len(group) // 2
    return [group[half:], group[:half]]


def too_large(sample: Encoded) -> str:
    """The reason of a sample for which there is no memory."""
    return f"its {sample.tokens} tokens do not fit into memory, even alone; lower --max-tokens, or take a larger device"
