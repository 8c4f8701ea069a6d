"""Fine-tune a model on the answers of some samples: the one training loop of warm-up and target training.

The loop is TRL's SFTTrainer. The loss is the one that samples are scored with: the mean over all answer
tokens of an optimizer step, whatever way the step is cut into batches. Rows are seen in shuffled passes that depend on
the seed alone, and a batch may cross from one pass into the next, so that every step but the last is full.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.proxy import Batch, Encoded, Proxy
from onesteptrain.proxy.encoding import collate
from onesteptrain.runs import write_json

Progress = Callable[[int, int], None]
"""Called after each optimizer step with the steps done and the steps in all."""

_IGNORED = -100
_BOOKS = "ledger.json"


@dataclass(frozen=True)
class FinetuneOptions:
    """How a model is fine-tuned with AdamW."""

    steps: int | None = None
    """Optimizer steps (Protocol B): few samples are seen more often. By default the epochs decide."""

    epochs: float = 1.0
    """Passes over the samples (Protocol A): fewer samples mean fewer steps."""

    batch_size: int = 16
    """Samples in one pass through the model."""

    gradient_accumulation: int = 1
    """Passes in one optimizer step."""

    learning_rate: float = 1e-5
    """Peak of the schedule."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes after its rise: cosine and linear end at zero."""

    rise_share: float = 0.03
    """Share of the steps in which the learning rate rises from zero to its peak."""

    weight_decay: float = 0.0
    """Decay of AdamW; biases and norms are spared."""

    max_grad_norm: float = 1.0
    """Longest gradient; a longer one is shortened to it. 0 leaves gradients as they are."""

    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    """Type in which the model computes; the weights keep theirs. auto is bfloat16 on a GPU that has it."""

    gradient_checkpointing: bool = False
    """Compute activations twice to save memory."""

    seed: int = 0
    """Fixes the order of the samples, and dropout."""

    def __post_init__(self) -> None:
        counts = {"batch_size": self.batch_size, "gradient_accumulation": self.gradient_accumulation}
        counts |= {} if self.steps is None else {"steps": self.steps}
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"{name} is {count}; it must be at least 1")
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite and not negative")
        if not 0 <= self.rise_share < 1:
            raise ConfigError(f"rise_share is {self.rise_share}; it must be at least 0 and below 1")


class FinetuneResult(NamedTuple):
    """What a fine-tuning did."""

    steps: int
    seconds: float
    """Time in the loop, without preparing it."""

    losses: list[float]
    """Mean loss over the answer tokens of each step, in nats, before the step."""

    tokens: int
    """Tokens seen, image tokens included and padding not."""

    second_moments: dict[str, Tensor]
    """Adam's second moment of each parameter in scope, bias removed; empty if not asked for."""

    @property
    def final_loss(self) -> float:
        """Mean of the last tenth of the losses."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def finetune(  # noqa: PLR0913  the parts of one request
    proxy: Proxy,
    samples: Sequence[Encoded],
    options: FinetuneOptions,
    *,
    workdir: Path | None = None,
    keep_moments: bool = False,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FinetuneResult:
    """Train the parameters in scope, in place; everything else about the model is left as it was found.

    Args:
        proxy: The model to train.
        samples: What to train on; each is asked for whenever its turn comes.
        options: How.
        workdir: Folder for ten intermediate checkpoints; a run that was cut off there goes on from the last.
        keep_moments: Give back Adam's second moments.
        progress: Told after each step.
        callbacks: Told of every event of the trainer.

    Raises:
        ConfigError: there are no samples, or the Trainer cannot run on the model's device.
        ScoreError: a loss is not finite; the weights are those before that step.
    """
    if not len(samples):
        raise ConfigError("there is nothing to train on: no sample could be used; check the reasons, or draw more")
    order = sample_order(len(samples), _rows_seen(len(samples), options), seed=options.seed)
    with _left_as_found(proxy.model), contextlib.ExitStack() as stack:
        if options.gradient_checkpointing:
            proxy.model.activation_checkpointing_enable({"use_reentrant": False})
        folder = workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = _arguments(proxy, options, folder, rows=len(order), keep=workdir is not None)
        ledger = _Ledger(proxy, samples, progress)
        trainer = _AnswerTrainer(proxy, order, arguments, ledger, autocast=_autocasts(proxy, options))
        for callback in callbacks:
            trainer.add_callback(callback)
        last = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]
        ledger.open(last)
        trainer.train(resume_from_checkpoint=last)
        moments = _second_moments(proxy, trainer) if keep_moments else {}
    return FinetuneResult(arguments.max_steps, ledger.seconds, ledger.losses, ledger.tokens, moments)


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


class _AnswerTrainer(SFTTrainer):
    """TRL's trainer with the loss of `Proxy.token_losses`, and without what costs time at every step."""

    def __init__(
        self, proxy: Proxy, order: Sequence[int], arguments: SFTConfig, ledger: _Ledger, *, autocast: bool
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
        batch = Batch(inputs, labels != _IGNORED).to(self._proxy.device, pixel_type)
        with torch.autocast(self._proxy.device.type, torch.bfloat16, enabled=self._autocast):
            losses = replace(self._proxy, model=model).token_losses(batch)
        loss = losses.loss.sum() / num_items_in_batch
        self._ledger.note(loss.item(), tokens=int(batch.inputs["attention_mask"].sum()))
        return (loss, losses) if return_outputs else loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: these are checkpoints on the way, which nobody publishes."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: counting walks over all modules at every step."""
        return 0


class _Ledger(TrainerCallback):
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
        """Time in the loop so far, that before a cut included."""
        return self._seconds_before + time.perf_counter() - self._opened

    def open(self, checkpoint: str | None) -> None:
        """Take up the books where a checkpoint left them, and start the clock."""
        file = Path(checkpoint or "", _BOOKS)
        if checkpoint is not None and file.is_file():  # it is not there if the cut fell between the two
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.losses, self.tokens, self._seconds_before = kept["losses"], kept["tokens"], kept["seconds"]
        self._opened = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the books with a checkpoint."""
        kept = {"losses": self.losses, "tokens": self.tokens, "seconds": self.seconds}
        write_json(Path(args.output_dir, f"checkpoint-{state.global_step}", _BOOKS), kept)

    def collate(self, places: Sequence[Mapping[str, int]]) -> dict[str, Tensor]:
        """Encode samples and pad them to one batch; labels are -100 wherever the assistant did not write."""
        samples = [self._samples[place["sample"]] for place in places]
        batch = collate(samples, pad_token_id=self._pad)
        labels = batch.inputs["input_ids"].masked_fill(~batch.answer, _IGNORED)
        labels[:, 0] = _IGNORED  # nothing predicts the first token
        return {**batch.inputs, "labels": labels}

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


def _arguments(proxy: Proxy, options: FinetuneOptions, folder: Path, *, rows: int, keep: bool) -> SFTConfig:
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
        save_total_limit=1,
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


def _autocasts(proxy: Proxy, options: FinetuneOptions) -> bool:
    if options.autocast == "auto":
        return proxy.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return options.autocast == "bfloat16"


def _second_moments(proxy: Proxy, trainer: SFTTrainer) -> dict[str, Tensor]:
    """Adam's exp_avg_sq / (1 - beta2**t); zero where no step gave a gradient."""
    moments = {}
    beta = trainer.args.adam_beta2
    states = trainer.optimizer.state  # type: ignore[union-attr]
    for name, parameter in proxy.parameters.items():
        state = states.get(parameter)
        corrected = state["exp_avg_sq"] / (1 - beta ** float(state["step"])) if state else torch.zeros_like(parameter)
        moments[name] = corrected.detach().clone()
    return moments


@contextlib.contextmanager
def _left_as_found(model: Any) -> Iterator[None]:
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
