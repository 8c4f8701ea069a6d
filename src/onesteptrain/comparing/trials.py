"""One trial: train the target on the rows of an arm with one seed, and measure it; each in a process of its own.

A trial's folder is named by all that it depends on. So one that is there is not done again, whatever comparison asked
for it, and two arms that keep the same rows share it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import PoolError
from onesteptrain.evaluation import EvaluateOptions
from onesteptrain.finetuning import FinetuneOptions
from onesteptrain.pool import Pool
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.steps import content_id

if TYPE_CHECKING:
    from onesteptrain.encodings import PoolEncodings
    from onesteptrain.evaluation import Question

FACTS = "trial.json"


@dataclass(frozen=True)
class Trial:
    """One training with its measurement."""

    pool: Pool
    target: str
    benchmark: Path
    rows: NDArray[np.int64]
    """Positions in the pool; none leaves the target untuned."""

    finetune: FinetuneOptions
    scope: ScopeOptions
    load: LoadOptions
    evaluate: EvaluateOptions

    @property
    def name(self) -> str:
        """A name that two trials share if and only if the same comes out."""
        tuning = [self.finetune, self.scope] if len(self.rows) else []
        return content_id(
            [self.pool.fingerprint, self.target, self.benchmark, self.rows.tobytes(), self.load, self.evaluate, *tuning]
        )


class Outcome(NamedTuple):
    """What a trial gave."""

    accuracy: float
    """In per cent."""

    by: dict[str, dict[str, float]]
    """In per cent, for each group of each column asked for."""

    correct: list[bool]
    """For each question of the benchmark, in its order."""

    rows: int
    """Trained on."""

    refused: int
    """Rows of the arm that could not be encoded."""

    steps: int
    tokens: int
    training_seconds: float
    evaluation_seconds: float


def run_trials(
    trials: Sequence[Trial], folder: Path, *, workers: int = 0, keep_checkpoints: bool = False
) -> Iterator[tuple[Trial, Outcome]]:
    """Run trials that are not done yet, several at a time; give each as it is done.

    Args:
        trials: What to run; those of one name are run once.
        folder: Where each trial has its folder.
        workers: Processes; 0 is one for each processor, or one for each GPU where there are some.
        keep_checkpoints: Keep each trained target in its folder.

    Raises:
        PoolError: none of an arm's rows can be used.
        ScoreError: a training diverged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {trial.name: trial for trial in trials}
    waiting = {name: trial for name, trial in named.items() if not (folder / name / FACTS).is_file()}
    for name in named.keys() - waiting.keys():
        yield named[name], read_outcome(folder / name)
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    places = context.Queue()
    count = _workers(workers, len(waiting), places)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_settle, initargs=(places, count)) as executor:
        work = functools.partial(_work, folder, keep_checkpoints)
        futures = {executor.submit(work, trial): trial for trial in waiting.values()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # after an error, what has not begun is not begun
            executor.shutdown(wait=False, cancel_futures=True)


def read_outcome(folder: Path) -> Outcome:
    """The outcome of a trial that is done."""
    return Outcome(**json.loads((folder / FACTS).read_text(encoding="utf-8"))["outcome"])


def _workers(asked: int, trials: int, places: Any) -> int:
    """How many processes there are to be; each takes one place: a GPU, or a part of the processors."""
    import torch

    gpus = torch.cuda.device_count()
    count = min(asked or gpus or os.cpu_count() or 1, trials)
    for place in range(count):
        places.put(str(place % gpus) if gpus else "")
    return count


def _settle(places: Any, count: int) -> None:
    """Make a fresh process ready: its own GPU, or its share of the processors."""
    os.environ["CUDA_VISIBLE_DEVICES"] = places.get()
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))


def _work(folder: Path, keep_checkpoints: bool, trial: Trial) -> Outcome:
    """Train and measure in one process."""
    from onesteptrain.evaluation import evaluate
    from onesteptrain.evaluation.evaluating import write_evaluation
    from onesteptrain.finetuning import finetune
    from onesteptrain.proxy import load_proxy
    from onesteptrain.runs import write_json

    place = folder / trial.name
    place.mkdir(exist_ok=True)
    target = load_proxy(trial.target, trial.scope, trial.load)
    trained: dict[str, Any] = {"rows": 0, "refused": 0, "steps": 0, "tokens": 0, "training_seconds": 0.0}
    if len(trial.rows):
        samples, refused = _encodings(trial.target, trial.load, trial.pool).take(trial.rows.tolist())
        if not len(samples):
            raise PoolError(f"none of {len(refused)} rows can be trained on ({next(iter(refused.values()))})")
        result = finetune(target, samples, trial.finetune, workdir=place / "steps")
        trained = {"rows": len(samples), "refused": len(refused), "steps": result.steps, "tokens": result.tokens}
        trained["training_seconds"] = result.seconds
        if keep_checkpoints:
            target.save(place / "checkpoint")
    started = time.perf_counter()
    evaluation = evaluate(target, _questions(trial.benchmark), trial.evaluate)
    outcome = Outcome(
        accuracy=100 * evaluation.accuracy.value,
        by={name: {key: 100 * one.value for key, one in groups.items()} for name, groups in evaluation.by.items()},
        correct=[one.correct for one in evaluation.graded],
        evaluation_seconds=time.perf_counter() - started,
        **trained,
    )
    write_evaluation(evaluation, place / "answers", overwrite=True)
    shutil.rmtree(place / "steps", ignore_errors=True)
    facts = {"target": trial.target, "finetune": dataclasses.asdict(trial.finetune), "outcome": outcome._asdict()}
    write_json(place / FACTS, facts)
    return outcome


@functools.lru_cache(maxsize=1)
def _encodings(target: str, load: LoadOptions, pool: Pool) -> PoolEncodings:
    """Rows of the pool as the target reads them: the arms of a process take theirs from here."""
    from onesteptrain.encodings import PoolEncodings
    from onesteptrain.proxy import load_proxy

    return PoolEncodings(load_proxy(target, options=load).encoder, pool)


@functools.lru_cache(maxsize=1)
def _questions(benchmark: Path) -> list[Question]:
    from onesteptrain.evaluation import read_benchmark

    return read_benchmark(benchmark)
