"""TRL's trainer as it is set up here, the books it keeps, and what is put back after it."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.proxy import Batch, Encoded, Proxy
from onesteptrain.proxy.encoding import collate
from onesteptrain.storage.atomic import write_json
from onesteptrain.training.options import FinetuneOptions, Progress

IGNORED = -100
"""Label of a token that is not trained on."""

BOOKS = "ledger.json"

_WEIGHTS = "token_weights"
"""Beside the labels of a batch, what each token counts; not there where all count 1."""


class Ledger(TrainerCallback):
    """Keeps the losses, tokens and seconds of a training, across a cut too; refuses a loss that is not finite."""

    def __init__(self, proxy: Proxy, samples: Sequence[Encoded], progress: Progress | None) -> None:
        self.losses: list[float] = []
        self.tokens = 0
        self._parts: list[float] = []
        self._samples = samples
        self._pad = proxy.encoder.processor.tokenizer.pad_token_id
        self._progress = progress
        self._seconds_before, self._opened = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time in the loop so far: that before a cut included, that for writing checkpoints not."""
        return self._seconds_before + time.perf_counter() - self._opened

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock while the block runs."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._opened += time.perf_counter() - started

    def open(self, folder: Path) -> str | None:
        """Start the clock, with the books of the last whole checkpoint in a folder; gives that checkpoint.

        The books are what is written last, so a checkpoint without them was cut off; it is deleted.
        """
        there = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for path in [path for path in there if not (path / BOOKS).is_file()]:
            shutil.rmtree(path)
        whole = [path for path in there if path.is_dir()]
        if whole:
            kept = json.loads((whole[-1] / BOOKS).read_text(encoding="utf-8"))
            self.losses, self.tokens, self._seconds_before = kept["losses"], kept["tokens"], kept["seconds"]
        self._opened = time.perf_counter()
        return str(whole[-1]) if whole else None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the books with a checkpoint."""
        kept = {"losses": self.losses, "tokens": self.tokens, "seconds": self.seconds}
        write_json(Path(args.output_dir, f"checkpoint-{state.global_step}", BOOKS), kept)

    def collate(self, places: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """Encode samples and pad them to one batch; labels are -100 wherever nothing is in the loss."""
        samples = [self._samples[place["sample"]] for place in places]
        batch = collate(samples, pad_token_id=self._pad)
        labels = batch.inputs["input_ids"].masked_fill(~batch.answer, IGNORED)
        labels[:, 0] = IGNORED  # nothing predicts the first token
        weights = {} if batch.weight is None else {_WEIGHTS: batch.weight}
        return {**batch.inputs, "labels": labels, **weights}

    def note(self, loss: float, *, tokens: int) -> None:
        """Take note of the loss and tokens of one batch, before its backward pass."""
        if not math.isfinite(loss):
            raise ScoreError(
                f"the loss of training step {len(self.losses) + 1} is {loss}; "
                "lower the learning rate, or load the weights in float32"
            )
        self._parts.append(loss)
        self.tokens += tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the books of one optimizer step."""
        self.losses.append(sum(self._parts))
        self._parts = []
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps)


class AnswerTrainer(SFTTrainer):
    """TRL's trainer with the loss of `Proxy.token_losses`, and without what costs time at every step."""

    def __init__(
        self, proxy: Proxy, order: Sequence[int], arguments: SFTConfig, ledger: Ledger, *, autocast: bool
    ) -> None:
        self._proxy, self._ledger, self._autocast = proxy, ledger, autocast
        super().__init__(
            model=proxy.model,
            args=arguments,
            data_collator=ledger.collate,
            train_dataset=Dataset.from_dict({"sample": order}),  # places; the collator encodes them
            processing_class=proxy.encoder.processor,
        )
        self.model_accepts_loss_kwargs = True  # so that the trainer counts the answer tokens of the whole step
        self.remove_callback(PrinterCallback)
        self.add_callback(ledger)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The part of this batch in the mean loss over the answer tokens of the step, by their weights."""
        labels, weights = inputs.pop("labels"), inputs.pop(_WEIGHTS, None)
        pixel_type = next(iter(self._proxy.model.parameters())).dtype
        batch = Batch(inputs, labels != IGNORED).to(self._proxy.device, pixel_type)
        with torch.autocast(self._proxy.device.type, torch.bfloat16, enabled=self._autocast):
            losses = replace(self._proxy, model=model).token_losses(batch)
        each = losses.loss if weights is None else losses.loss * weights[labels != IGNORED]
        loss = each.sum() / num_items_in_batch
        self._ledger.note(loss.item(), tokens=int(batch.inputs["attention_mask"].sum()))
        return (loss, losses) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """What the answer tokens of a whole step count together."""
        counts = [(batch.get(_WEIGHTS, 1) * (batch["labels"] != IGNORED)).sum() for batch in batch_samples]
        return torch.as_tensor(sum(counts)).to(device)

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        with self._ledger.paused():
            super()._save_checkpoint(*given, **named)  # type: ignore[no-untyped-call]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: these are checkpoints on the way, which nobody publishes."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: counting walks over all modules at every step."""
        return 0


def make_arguments(proxy: Proxy, options: FinetuneOptions, folder: Path, *, rows: int, keep: bool) -> SFTConfig:
    """The trainer's settings.

    Raises:
        ConfigError: the trainer cannot run on the model's device.
    """
    steps = math.ceil(rows / (options.batch_size * options.gradient_accumulation))
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else options.schedule,
        warmup_steps=round(options.rise_share * steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        train_sampling_strategy="sequential",
        save_strategy="steps" if keep else "no",
        save_steps=math.ceil(steps / 10),
        save_total_limit=2,
        use_cpu=proxy.device.type == "cpu",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        bf16=False,  # `compute_loss` casts by itself; left out, TRL would switch it on
        activation_checkpointing=False,  # switched on by `finetune`, which switches it off again
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        log_level="error",
        report_to="none",
    )
    _check_device(proxy, arguments)
    return arguments


def _check_device(proxy: Proxy, arguments: SFTConfig) -> None:
    if arguments.world_size > 1:
        raise ConfigError(f"training runs in one process, and {arguments.world_size} were started; start one")
    if proxy.device != torch.empty(0, device=arguments.device).device:
        raise ConfigError(
            f"the model is on {proxy.device} and training would move it to {arguments.device}; "
            "choose a GPU with CUDA_VISIBLE_DEVICES instead of --device"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the trainer would split batches over all GPUs that it sees


def autocasts(proxy: Proxy, options: FinetuneOptions) -> bool:
    """Whether the model computes in bfloat16."""
    if options.autocast == "auto":
        return proxy.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return options.autocast == "bfloat16"


@contextlib.contextmanager
def left_as_found(model: Any) -> Iterator[None]:
    """Undo what the trainer changes besides the weights: mode, configuration, head, random numbers, log level."""
    mode, verbosity = model.training, transformers.logging.get_verbosity()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    checkpointed = model.is_activation_checkpointing
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    before = [copy.deepcopy(vars(config)) for config in configs]
    forward = vars(model).get("forward")
    try:
        with torch.random.fork_rng():
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        _put_back(configs, before)
        vars(model).pop("forward", None)  # the loss head that SFTTrainer puts in front
        if forward is not None:
            model.forward = forward
        if model.is_activation_checkpointing and not checkpointed:
            model.activation_checkpointing_disable()
        model.zero_grad()
        model.train(mode)


def _put_back(configs: Sequence[Any], before: Sequence[dict[str, Any]]) -> None:
    """Give configurations their values back; those that are configurations themselves stay the objects they are."""
    for config, values in zip(configs, before, strict=True):
        now = vars(config)
        for name in now.keys() - values.keys():
            del now[name]
        now.update({name: value for name, value in values.items() if not hasattr(value, "to_dict")})
