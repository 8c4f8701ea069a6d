"""TRL's trainer as it is set up here, and what is put back after it."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from onesteptrain.errors import ConfigError
from onesteptrain.proxy import Batch, Proxy
from onesteptrain.training.finetuning.ledger import IGNORED, Ledger
from onesteptrain.training.finetuning.options import FinetuneOptions


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
        """The part of this batch in the mean loss over the answer tokens of the step."""
        labels = inputs.pop("labels")
        pixel_type = next(iter(self._proxy.model.parameters())).dtype
        batch = Batch(inputs, labels != IGNORED).to(self._proxy.device, pixel_type)
        with torch.autocast(self._proxy.device.type, torch.bfloat16, enabled=self._autocast):
            losses = replace(self._proxy, model=model).token_losses(batch)
        loss = losses.loss.sum() / num_items_in_batch
        self._ledger.note(loss.item(), tokens=int(batch.inputs["attention_mask"].sum()))
        return (loss, losses) if return_outputs else loss

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
