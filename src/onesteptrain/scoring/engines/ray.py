"""Workers that are tasks of a Ray cluster.

Rows do not pass through Ray: each worker reads the pool where it lies and writes its shards into the run directory, so
that both must be on a file system that all nodes share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onesteptrain.errors import ConfigError, MissingExtraError, OneStepError
from onesteptrain.scoring.engines.deaths import Deaths
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.work import Work, score_share

_TICK = 0.5
"""Seconds between two looks at what has been done."""


def score_on_ray(work: Work, deaths: Deaths) -> Iterator[None]:
    """Let a Ray cluster score; yields now and then until all is done.

    Raises:
        ConfigError: the cluster cannot be reached, or has not what a worker needs.
        MissingExtraError: Ray is not installed.
        OneStepError: what a worker has raised.
        RunError: workers die again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("engine ray needs Ray: pip install 'onesteptrain[ray]'") from error
    cluster: Any = ray
    with _connected(ray, work.options):
        gpus, workers = _resources(cluster.cluster_resources(), work.options)
        handed = ray.put(work)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, max_calls=1)(_score)
        running = {task.remote(handed, number, workers): number for number in range(workers)}
        try:
            while running:
                ended, _ = ray.wait(list(running), timeout=_TICK)
                yield
                for one in ended:
                    number = running.pop(one)
                    try:
                        ray.get(one)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause if isinstance(error.cause, OneStepError) else error from None
                    except ray.exceptions.RayError as error:  # the process or its node is gone, or memory was short
                        deaths.count(type(error).__name__)
                        running[task.remote(handed, number, workers)] = number
        finally:
            for one in running:
                ray.cancel(one, force=True)


def _score(work: Work, number: int, workers: int) -> None:
    for _ in score_share(work, number, workers):
        pass


@contextmanager
def _connected(ray: Any, options: ScoringOptions) -> Iterator[None]:
    """A connection to the cluster, unless there is one already."""
    if ray.is_initialized():
        yield
        return
    own = {} if options.address else {"include_dashboard": False}
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {options.address or 'this machine'} ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _resources(cluster: dict[str, float], options: ScoringOptions) -> tuple[float, int]:
    """GPUs of a worker, and the number of workers."""
    there = cluster.get("GPU", 0.0)
    gpus = float(there > 0) if options.gpus_per_worker is None else options.gpus_per_worker
    if gpus > there:
        raise ConfigError(
            f"gpus_per_worker is {gpus:g} and the Ray cluster has {there:g} GPUs; a worker would never start"
        )
    fitting = there // gpus if gpus else cluster.get("CPU", 1.0)
    return gpus, options.workers or max(1, int(fitting))
