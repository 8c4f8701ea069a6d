"""The one training loop of warm-up and target training: TRL's SFTTrainer.

The loss is the one that samples are scored with: the mean over all answer tokens of an optimizer step, whatever way the
step is cut into batches. Rows are seen in shuffled passes that depend on the seed alone, and a batch may cross from one
pass into the next, so that every step but the last is full.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import TrainerCallback

from onesteptrain.errors import ConfigError
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.training.options import FinetuneOptions, Progress
from onesteptrain.training.trainer import AnswerTrainer, Ledger, autocasts, left_as_found, make_arguments


class FinetuneResult(NamedTuple):
    """What a fine-tuning did."""

    steps: int
    seconds: float
    """Time in the loop, without preparing it."""

    losses: list[float]
    """Mean loss over the answer tokens of each step, in nats, before the step."""

    tokens: int
    """Tokens seen, image tokens included and padding not."""


def finetune(
    proxy: Proxy,
    samples: Sequence[Encoded],
    options: FinetuneOptions,
    *,
    workdir: Path | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FinetuneResult:
    """Train the parameters in scope, in place; everything else about the model is left as it was found.

    Args:
        proxy: The model to train.
        samples: What to train on; each is asked for whenever its turn comes.
        options: How.
        workdir: Folder for ten intermediate checkpoints; a run that was cut off there goes on from the last.
        progress: Told after each step.
        callbacks: Told of every event of the trainer.

    Raises:
        ConfigError: there are no samples, or the trainer cannot run on the model's device.
        ScoreError: a loss is not finite; the weights are those before that step.
    """
    if not len(samples):
        raise ConfigError("there is nothing to train on: no sample could be used; check the reasons, or draw more")
    order = sample_order(len(samples), _rows_seen(len(samples), options), seed=options.seed)
    with left_as_found(proxy.model), contextlib.ExitStack() as stack:
        if options.gradient_checkpointing:
            proxy.model.activation_checkpointing_enable({"use_reentrant": False})
        folder = workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = make_arguments(proxy, options, folder, rows=len(order), keep=workdir is not None)
        ledger = Ledger(proxy, samples, progress)
        trainer = AnswerTrainer(proxy, order, arguments, ledger, autocast=autocasts(proxy, options))
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=ledger.open(folder))
    return FinetuneResult(arguments.max_steps, ledger.seconds, ledger.losses, ledger.tokens)


def sample_order(rows: int, seen: int, *, seed: int) -> list[int]:
    """The positions of the samples in the order in which they are seen: one shuffled pass after another."""
    shuffler = random.Random(seed)
    order: list[int] = []
    while len(order) < seen:
        one_pass = list(range(rows))
        shuffler.shuffle(one_pass)
        order += one_pass
    return order[:seen]


def _rows_seen(rows: int, options: FinetuneOptions) -> int:
    if options.steps is not None:
        return options.steps * options.batch_size * options.gradient_accumulation
    return max(1, round(options.epochs * rows))
