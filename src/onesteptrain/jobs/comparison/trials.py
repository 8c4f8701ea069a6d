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
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool
from onesteptrain.errors import OneStepError, PoolError, RunError
from onesteptrain.evaluation import EvaluateOptions, Question, evaluate, read_benchmark
from onesteptrain.evaluation.results import Counting, read_results, summarise, write_evaluation
from onesteptrain.jobs.reweighting import Harmful, learned_as
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, ScopeOptions, load_proxy
from onesteptrain.storage.atomic import write_json
from onesteptrain.storage.fingerprints import as_place, content_id
from onesteptrain.storage.ownership import note_made
from onesteptrain.training import FinetuneOptions, PoolEncodings, encode_all, finetune

FACTS = "trial.json"
ANSWERS = "answers"
CHECKPOINT = "checkpoint"


class Harm(NamedTuple):
    """What becomes of harmful rows and tokens that are not dropped."""

    harmful: Harmful
    scores: Path
    """Run directory of the scores that tell which they are."""


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

    harm: Harm | None = None

    label: str = ""
    """What people call it; no part of its name."""

    @functools.cached_property
    def name(self) -> str:
        """A name that two trials share if and only if the same comes out."""
        tuning = [self.finetune, self.scope] if len(self.rows) else []
        asking = dataclasses.replace(self.evaluate, by=())  # counted afterwards, by any column
        start = [self.pool.fingerprint, self.rows.tobytes(), as_place(self.target), self.benchmark, self.load]
        # scores lie in a folder that is named by all that they depend on
        harm = [self.harm.harmful, self.harm.scores.parts[-2:]] if self.harm is not None and len(self.rows) else []
        return content_id([*start, asking, *tuning, *harm])


class Outcome(NamedTuple):
    """What a trial gave."""

    accuracy: float
    """In per cent."""

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
) -> Generator[tuple[Trial, Outcome], None, None]:
    """Run trials that are not done yet, several at a time; give each as it is done.

    Args:
        trials: What to run; those of one name are run once.
        folder: Where each trial has its folder.
        workers: Processes; 0 is one for each processor, or one for each GPU where there are some.
        keep_checkpoints: Keep each trained target in its folder.

    Raises:
        PoolError: none of an arm's rows can be used.
        RunError: a process died.
        ScoreError: a training diverged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {trial.name: trial for trial in trials}
    waiting = {name: trial for name, trial in named.items() if not _is_done(trial, folder, keep_checkpoints)}
    for name in named.keys() - waiting.keys():
        yield named[name], read_outcome(folder / name)
    if waiting:
        yield from _in_processes(list(waiting.values()), folder, workers, keep_checkpoints)


def read_outcome(folder: Path) -> Outcome:
    """The outcome of a trial that is done."""
    return Outcome(**json.loads((folder / FACTS).read_text(encoding="utf-8"))["outcome"])


@functools.lru_cache(maxsize=4096)
def accuracy_by_group(folder: Path, column: str) -> dict[str, float]:
    """Accuracy of a trial that is done, in per cent, for each value of a column of the benchmark."""
    groups = summarise(read_results(folder / ANSWERS), Counting([column])).by[column]
    return {name: 100 * one.value for name, one in groups.items()}


def _is_done(trial: Trial, folder: Path, keep_checkpoints: bool) -> bool:
    wanted = keep_checkpoints and len(trial.rows)
    return (folder / trial.name / FACTS).is_file() and (not wanted or (folder / trial.name / CHECKPOINT).is_dir())


def _in_processes(
    trials: Sequence[Trial], folder: Path, workers: int, keep_checkpoints: bool
) -> Generator[tuple[Trial, Outcome], None, None]:
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    places = context.Queue()
    count = _workers(workers, len(trials), places)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_settle, initargs=(places, count)) as executor:
        work = functools.partial(_work, folder, keep_checkpoints)
        try:
            futures = {executor.submit(work, trial): trial for trial in trials}
            for future in as_completed(futures):
                yield futures[future], _result(future, futures[future])
        # Ctrl-C here, or in whoever takes the outcomes: a training may have hours to go; what it has reached is kept
        except (KeyboardInterrupt, GeneratorExit):
            for process in (children := multiprocessing.active_children()):
                process.terminate()
            for process in children:
                process.join()
            raise
        finally:  # after an error, what has not begun is not begun
            executor.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Outcome], trial: Trial) -> Outcome:
    """The outcome, or the error with the trial that it came from."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RunError(
            f"{trial.label}: the process that trained it died, perhaps for want of memory; "
            "give fewer --workers or a smaller batch_size: what is done is kept"
        ) from error
    except OneStepError as error:
        raise type(error)(f"{trial.label}: {error}") from error


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(asked: int, trials: int, places: Any) -> int:
    """How many processes there are to be; each takes one place: a GPU, or a part of the processors."""
    gpus = torch.cuda.device_count()
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = visible[:gpus] or [str(number) for number in range(gpus)]
    count = min(asked or gpus or _processors(), trials)
    for place in range(count):
        places.put(visible[place % gpus] if gpus else "")
    if gpus:
        torch.cuda.empty_cache()  # what scoring has left on a GPU that a training needs
    return count


def _settle(places: Any, count: int) -> None:
    """Make a fresh process ready: its own GPU, or its share of the processors; it ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers it
    os.environ["CUDA_VISIBLE_DEVICES"] = places.get()
    torch.set_num_threads(max(1, _processors() // count))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent must not leave trainings behind that the next one would do again beside them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(folder: Path, keep_checkpoints: bool, trial: Trial) -> Outcome:
    """Train and measure in one process."""
    place = folder / trial.name
    place.mkdir(exist_ok=True)
    load = dataclasses.replace(trial.load, device=trial.load.device.partition(":")[0])  # the GPU is chosen already
    target = load_proxy(trial.target, trial.scope, load)
    samples, refused = trial_samples(trial, target, load)
    note_made(place / "steps", tree=True)
    trained = _train(trial, target, samples, refused, place / "steps")
    if keep_checkpoints and len(trial.rows):
        note_made(place / CHECKPOINT, tree=True)
        target.save(place / CHECKPOINT)
    started = time.perf_counter()
    evaluation = evaluate(target, _questions(trial.benchmark, **trial.pool.reading.for_others()), trial.evaluate)
    outcome = Outcome(
        accuracy=100 * evaluation.accuracy.value,
        correct=[one.correct for one in evaluation.graded],
        evaluation_seconds=time.perf_counter() - started,
        **trained,
    )
    write_evaluation(evaluation, place / ANSWERS, overwrite=True)
    facts = {"label": trial.label, "target": trial.target, "finetune": dataclasses.asdict(trial.finetune)}
    write_json(place / FACTS, {**facts, "pool_rows": trial.rows.tolist(), "outcome": outcome._asdict()})
    shutil.rmtree(place / "steps", ignore_errors=True)
    return outcome


def trial_samples(trial: Trial, target: Proxy, load: LoadOptions) -> tuple[Sequence[Encoded], dict[str, str]]:
    """What the trial trains on; of rows that are masked or weighed, other arms have no use."""
    if trial.harm is None:
        return _encodings(trial.target, load, trial.pool).take(trial.rows.tolist())
    chosen = set(trial.rows.tolist())
    rows, _ = learned_as((row for row in trial.pool if row.row in chosen), *trial.harm)
    return encode_all(target.encoder, rows)


def _train(trial: Trial, target: Proxy, samples: Sequence[Encoded], refused: Mapping[str, str], steps: Path) -> Any:
    """Train the target, in place, unless the trial leaves it untuned; the numbers of its outcome."""
    if not len(trial.rows):
        return {"rows": 0, "refused": 0, "steps": 0, "tokens": 0, "training_seconds": 0.0}
    if not len(samples):
        raise PoolError(
            f"none of {len(refused)} rows can be trained on ({next(iter(refused.values()))}); mend the pool"
        )
    result = finetune(target, samples, trial.finetune, workdir=steps)
    numbers = {"rows": len(samples), "refused": len(refused), "steps": result.steps, "tokens": result.tokens}
    return {**numbers, "training_seconds": result.seconds}


@functools.lru_cache(maxsize=1)
def _encodings(target: str, load: LoadOptions, pool: Pool) -> PoolEncodings:
    """Rows of the pool as the target reads them: the arms of a process take theirs from here."""
    return PoolEncodings(load_proxy(target, options=load).encoder, pool)


@functools.lru_cache(maxsize=1)
def _questions(benchmark: Path, image_column: tuple[str, ...], allow_outside: bool) -> list[Question]:
    return read_benchmark(benchmark, image_column=image_column, allow_outside=allow_outside)
