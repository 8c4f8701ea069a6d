"""Read images and texts in processes of their own, while the model works on the samples before."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from onesteptrain.data.pool import Sample
from onesteptrain.errors import ConfigError, RunError, SampleError
from onesteptrain.proxy.encoding import Encoded, Encoder

Expect = Callable[[Sequence[Sample]], None]
"""Says which samples will be encoded next."""

_TOGETHER = 8
"""Samples of one task: enough to hide what handing them over costs."""


@contextlib.contextmanager
def prefetching(encoder: Encoder, workers: int) -> Iterator[Expect]:
    """Let processes encode the samples that are expected; `encoder.encode` then takes what they have made.

    What comes out is the same, whoever made it; a sample that was not expected is encoded where it is asked for.

    Args:
        encoder: Whose samples are expected.
        workers: Processes; 0 expects nothing.

    Raises:
        ConfigError: the processor cannot be handed to a process.
        RunError: a process died.
    """
    if not workers:
        yield lambda samples: None
        return
    try:
        packed = pickle.dumps(encoder)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the processor cannot be handed to other processes ({error}); give --set readers=0"
        ) from error
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(packed,)) as pool:

        def expect(samples: Sequence[Sample]) -> None:
            for start in range(0, len(samples), _TOGETHER):
                group = list(samples[start : start + _TOGETHER])
                with _telling_of_death():
                    task = pool.submit(_encode_all, group)
                for place, sample in enumerate(group):
                    encoder.prefetched[id(sample)] = (sample, functools.partial(_taken, task, place))

        try:
            yield expect
        finally:
            encoder.prefetched.clear()
            pool.shutdown(wait=False, cancel_futures=True)


def readers(asked: int | None, device: torch.device) -> int:
    """How many processes prefetch: by default none on a CPU, which scoring needs itself, and up to 8 beside a GPU."""
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) - 1))


def _taken(task: Any, place: int) -> Encoded:
    with _telling_of_death():
        result = task.result()[place]
    if isinstance(result, str):
        raise SampleError(result)
    inputs, answer, weight = result
    return Encoded(
        {name: torch.from_numpy(value) for name, value in inputs.items()},
        torch.from_numpy(answer),
        None if weight is None else torch.from_numpy(weight),
    )


@contextlib.contextmanager
def _telling_of_death() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise RunError(
            "a process that reads images and texts died, perhaps for want of memory; give fewer readers: what is "
            "scored is kept"
        ) from error


_encoder: list[Encoder] = []
"""Of this process, if it is one that prefetches."""


def end_with_parent() -> None:
    """End this process when the one that has started it ends, however that comes about."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _begin(packed: bytes) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers it
    torch.set_num_threads(1)
    _encoder.append(pickle.loads(packed))


def _encode_all(samples: Sequence[Sample]) -> list[Any]:
    """What the samples are as arrays, which cost no file descriptor, or the reasons why they are nothing."""
    results: list[Any] = []
    for sample in samples:
        try:
            encoded = _encoder[0].encode(sample)
            weight = None if encoded.weight is None else encoded.weight.numpy()
            inputs = {name: value.numpy() for name, value in encoded.inputs.items()}
            results.append((inputs, encoded.answer.numpy(), weight))
        except SampleError as error:
            results.append(str(error))
    return results
