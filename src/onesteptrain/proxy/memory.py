"""Work in batches that fit into memory, whatever the batch size that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from onesteptrain.proxy.encoding import Encoded

T = TypeVar("T")
W = TypeVar("W")

BATCH_TOKENS = 16384
"""By default, one pass holds no more tokens."""

CPU_TOKENS = 1024
"""And no more for each thread of a CPU: what a layer makes of many more tokens leaves the caches."""

CPU_ROWS = 16
"""Rows of one pass on a CPU, unless a batch size is given."""

_OTHER_WORDS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of the driver and of cuBLAS, which have no room left where PyTorch's cache has filled a device."""

Batches = list[list[int]]
"""Positions of the samples of each batch."""


@dataclass
class MemoryBudget:
    """How much one pass may hold; learned while working."""

    most_tokens: int = BATCH_TOKENS
    """Tokens of one pass, padding included, as long as nothing has failed."""

    most_rows: int = BATCH_TOKENS
    """Samples of one pass, unless a batch size is given; tokens may allow fewer."""

    tokens: int = field(init=False)
    """Tokens that one pass may hold; fewer once a pass has failed."""

    together: int | None = field(default=None, init=False)
    """Batches that may be held at once; None as long as nothing has failed."""

    def __post_init__(self) -> None:
        self.tokens = self.most_tokens

    def smaller(self, group: Batches, samples: Sequence[Encoded]) -> list[Batches]:
        """In place of batches that did not fit: fewer, then halves of the only one; nothing for one sample."""
        if len(group) > 1:
            self.together = len(group) // 2
            return _halves(group)
        (batch,) = group
        self.together = None  # it was not for their number that several did not fit
        if len(batch) == 1:
            return []
        half = len(batch) // 2
        self.tokens = min(self.tokens, half * max(samples[index].tokens for index in batch))
        return [[batch[half:]], [batch[:half]]]


def memory_budget(device: torch.device, batch_tokens: int | None) -> MemoryBudget:
    """What a device is trusted with at first.

    Args:
        device: Where the model is.
        batch_tokens: Most tokens of one pass, padding included; None leaves that to the device.
    """
    on_cpu = device.type == "cpu"
    tokens = batch_tokens or (min(BATCH_TOKENS, CPU_TOKENS * torch.get_num_threads()) if on_cpu else BATCH_TOKENS)
    return MemoryBudget(tokens, CPU_ROWS if on_cpu else tokens)


def in_batches(samples: Sequence[Encoded], batch_size: int, batch_tokens: int | None = None) -> Batches:
    """Positions of samples grouped into batches of similar length, so that little is padded.

    Args:
        samples: What is grouped.
        batch_size: Most samples of a batch.
        batch_tokens: Most tokens of a batch, padding included; a longer sample is a batch alone.
    """
    batches: Batches = []
    for index in sorted(range(len(samples)), key=lambda index: (samples[index].tokens, index)):
        rows = len(batches[-1]) + 1 if batches else 1
        fits = rows <= batch_size and (batch_tokens is None or rows * samples[index].tokens <= batch_tokens)
        if batches and fits:
            batches[-1].append(index)  # the longest yet
        else:
            batches.append([index])
    return batches


def in_memory(
    budget: MemoryBudget,
    samples: Sequence[Encoded],
    work: Callable[[list[list[Encoded]]], Iterable[Iterable[T]]],
    lost: Callable[[Encoded], T],
    *,
    batch_size: int | None,
    at_once: int = 1,
) -> list[T]:
    """Measure samples in batches of similar length; a batch for which there is no memory is split and tried again.

    Args:
        budget: It says how many tokens fit, and remembers if they do not, so that later batches begin there.
        samples: What is measured.
        work: Measures some batches; what it raised for want of memory it must have left no trace of.
        lost: What stands for a sample that does not fit even alone.
        batch_size: Most samples in one pass; None leaves that to the budget.
        at_once: Batches that are given to one call.

    Returns:
        What came out, in the order of the samples.
    """
    measured: dict[int, T] = {}
    batches = in_batches(samples, batch_size or budget.most_rows, budget.tokens)
    waiting = [batches[start : start + at_once] for start in range(0, len(batches), at_once)][::-1]

    def measure(group: Batches) -> None:
        if len(group) > (budget.together or at_once):
            waiting.extend(_halves(group))
            return
        results = work([[samples[index] for index in indices] for indices in group])
        for indices, values in zip(group, results, strict=True):
            measured.update(zip(indices, values, strict=True))

    until_it_fits(waiting, measure, lambda group: budget.smaller(group, samples))
    return [measured[index] if index in measured else lost(sample) for index, sample in enumerate(samples)]


def until_it_fits(waiting: list[W], work: Callable[[W], None], smaller: Callable[[W], list[W]]) -> None:
    """Do the work that waits; what memory does not hold is replaced by smaller work.

    Args:
        waiting: Taken from the end, until nothing is left.
        work: Does a piece; where it raises for want of memory it must have left no trace.
        smaller: What to do in place of a piece; nothing gives it up.
    """
    while waiting:
        piece = waiting.pop()
        try:
            work(piece)
        except Exception as error:
            if not out_of_memory(error):
                raise
            waiting += smaller(piece)
        else:
            continue
        clear_device_cache()  # after the error has let go of its tensors


def out_of_memory(error: Exception) -> bool:
    """Whether smaller work may succeed where this was raised."""
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OTHER_WORDS)


def too_large(sample: Encoded) -> str:
    """The reason of a sample for which there is no memory."""
    return f"its {sample.tokens} tokens do not fit into memory, even alone; lower --max-tokens, or take a larger device"


def _halves(group: Batches) -> list[Batches]:
    """The second half first: what waits is taken from the end."""
    half = len(group) // 2
    return [group[half:], group[:half]]
