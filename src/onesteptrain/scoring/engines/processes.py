"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

from onesteptrain.errors import ConfigError, OneStepError
from onesteptrain.proxy.acceleration.prefetch import end_with_parent
from onesteptrain.scoring.engines.deaths import Deaths
from onesteptrain.scoring.work import Work, score_share

_TICK = 0.5
"""Seconds between two looks at what has been done."""


class _Worker(NamedTuple):
    process: SpawnProcess
    news: Connection


def score_in_processes(work: Work, deaths: Deaths) -> Iterator[None]:
    """Let processes score, each with its part of the cores or a GPU of its own; yields now and then until all is done.

    Raises:
        ConfigError: the work cannot be handed to a process.
        OneStepError: what a worker has raised.
        RunError: workers die again and again.
    """
    packed, count = pack(work), work.options.workers or 1
    workers = {number: _start(packed, number, count) for number in range(count)}
    try:
        while workers:
            wait([worker.process.sentinel for worker in workers.values()], _TICK)
            yield
            for number, (process, news) in list(workers.items()):
                if process.exitcode is None:
                    continue
                if news.poll() and (error := _told(news)) is not None:
                    raise error
                del workers[number]
                if process.exitcode:
                    deaths.count(f"exit code {process.exitcode}")
                    workers[number] = _start(packed, number, count)
    finally:
        for process, _ in workers.values():
            process.kill()
        for process, _ in workers.values():
            process.join()


def pack(work: Work) -> bytes:
    """The work as bytes for another process.

    Raises:
        ConfigError: a part of it lives in this process alone.
    """
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"several workers need what each can load for itself ({error}); give the proxy and the method by name, "
            "or one worker"
        ) from error


def use_share(number: int, workers: int) -> None:
    """Take one of the GPUs, in turn, or an equal part of the cores unless OMP_NUM_THREADS says how many threads."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


def _start(packed: bytes, number: int, workers: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    news, tell = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(packed, number, workers, tell), name=f"scoring {number}")
    process.start()
    tell.close()
    return _Worker(process, news)


def _work(packed: bytes, number: int, workers: int, tell: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers it
    end_with_parent()
    try:
        use_share(number, workers)
        for _ in score_share(pickle.loads(packed), number, workers):
            pass
    except OneStepError as error:
        tell.send(error)
        sys.exit(1)


def _told(news: Connection) -> OneStepError | None:
    try:
        error = news.recv()
    except EOFError:
        return None
    return error if isinstance(error, OneStepError) else None
