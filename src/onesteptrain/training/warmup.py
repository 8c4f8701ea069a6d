"""Warm up the proxy: fine-tune it on a few per cent of the pool, and keep the optimizer's second moments.

A little is better than much: in the paper a warm-up on 5 % of the pool gives the best selection, and one to convergence
the worst (arXiv:2605.07488). Whether a row is drawn depends on the seed and its uid alone, so neither the order of the
pool nor its other rows matter, and memory holds the drawn rows only. Methods that look back at the training, such as
LESS, get states from on the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from onesteptrain.data.pool import Sample, Unreadable
from onesteptrain.errors import ConfigError, PoolError
from onesteptrain.proxy import Proxy
from onesteptrain.storage.atomic import whole_folder, write_json
from onesteptrain.storage.learning_record import write_learning
from onesteptrain.storage.seeds import uniform
from onesteptrain.training.encodings import encode_all, most_common
from onesteptrain.training.finetuning import finetune
from onesteptrain.training.learning import learning_record, measure, watch
from onesteptrain.training.options import FinetuneOptions, Progress
from onesteptrain.utility.checkpoints import WarmCheckpoint, write_checkpoint

CHECKPOINTS = "checkpoints"
MODEL = "model"
MOMENTS = "second_moments.safetensors"
FACTS = "warmup.json"


@dataclass(frozen=True)
class WarmupOptions:
    """What the proxy is warmed up on, and how."""

    share: float = 0.05
    """Share of the pool; each row is drawn with this probability."""

    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    """The training; one pass over the drawn rows unless steps are given. Its seed also draws the rows."""

    checkpoints: int = 0
    """States to keep on the way for LESS, evenly spaced, the last one at the end; each takes thrice the weights."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share is {self.share}; it must be above 0 and at most 1")
        if self.checkpoints < 0:
            raise ConfigError(f"checkpoints is {self.checkpoints}; it must be at least 0")


class WarmupResult(NamedTuple):
    """What a warm-up did."""

    folder: Path
    drawn: int
    """Rows drawn from the pool."""

    used: int
    """Drawn rows that could be encoded."""

    refused: dict[str, str]
    """Why each other drawn row could not be used, by uid."""

    steps: int
    seconds: float
    losses: list[float]
    """Mean loss over the answer tokens of each step, in nats."""


def warm_up(  # noqa: PLR0913  what a training takes, and what is measured beside it
    proxy: Proxy,
    samples: Iterable[Sample | Unreadable],
    options: WarmupOptions,
    out: Path,
    *,
    anchors: Sequence[Sample] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> WarmupResult:
    """Train the proxy, in place, on a share of the pool and write a folder that `load_proxy` and Adam's step can use.

    Args:
        proxy: The proxy; its parameters in scope are trained.
        samples: The pool.
        options: What to train on, and how.
        out: New folder: `model/` (checkpoint, or adapters alone), `second_moments.safetensors`, `warmup.json`, and
            a folder in `checkpoints/` for each state that is to be kept.
        anchors: Trusted samples that are not trained on: what the training does to their loss is kept in
            `learning.json`, for whether training on the pool is worth it.
        overwrite: Replace an earlier folder.
        progress: Told after each step.

    Raises:
        ConfigError: the training has fewer steps than there are checkpoints to keep.
        PoolError: no row was drawn, or none of them can be used.
        RunError: the output is taken.
        ScoreError: the training diverged.
    """
    with whole_folder(out, kind="a warm-up", overwrite=overwrite) as part:
        encodings, refused = encode_all(proxy.encoder, draw(samples, options.share, seed=options.finetune.seed))
        drawn = len(encodings) + len(refused)
        if not drawn:
            raise PoolError(f"a share of {options.share} draws no row from this pool; raise --share")
        if not len(encodings):
            uid, reason = next(iter(refused.items()))
            raise PoolError(
                f"none of the {drawn} rows drawn can be used, such as {uid!r}: {reason}; "
                "mend the pool, or raise --share"
            )
        keeper = StateKeeper(proxy, part / CHECKPOINTS, options.checkpoints)
        watched = watch(proxy, encodings, anchors, seed=options.finetune.seed) if anchors else None
        before = measure(proxy, watched) if watched else ([], [])
        result = finetune(proxy, encodings, options.finetune, progress=progress, callbacks=[keeper])
        if watched:
            write_learning(learning_record(len(encodings), watched, before, measure(proxy, watched)), part)
        proxy.save(part / MODEL)
        moments = {name: value.cpu().contiguous() for name, value in keeper.second_moments.items()}
        save_file(moments, part / MOMENTS, metadata={"format": "pt"})
        done = WarmupResult(out, drawn, len(encodings), refused, result.steps, result.seconds, result.losses)
        facts = done._asdict() | {"tokens": result.tokens, "reasons": most_common(refused)}
        del facts["folder"], facts["refused"]
        write_json(part / FACTS, {"options": dataclasses.asdict(options), **facts})
    return done


def draw(samples: Iterable[Sample | Unreadable], share: float, *, seed: int) -> Iterator[Sample | Unreadable]:
    """The rows whose hash of seed and uid falls below the share."""
    for sample in samples:
        if uniform("warm-up", seed, sample.uid) < share:
            yield sample


class StateKeeper(TrainerCallback):
    """Keeps the optimizer's states: some on the way, each written as soon as it is reached, and the moments at the end.

    The states on the way end equal stretches of the training.
    """

    def __init__(self, proxy: Proxy, folder: Path, count: int) -> None:
        self.second_moments: dict[str, Tensor] = {}
        """Adam's second moment of each parameter in scope at the end, bias removed."""
        self._proxy, self._folder, self._count = proxy, folder, count
        self._steps: set[int] = set()
        self._rates: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Choose the steps: the last of each of as many equal stretches."""
        if state.max_steps < self._count:
            raise ConfigError(
                f"{self._count} checkpoints were asked for and the warm-up has {state.max_steps} steps; "
                "lower --checkpoints, or raise --share or --steps"
            )
        self._steps = {math.ceil(number * state.max_steps / self._count) for number in range(1, self._count + 1)}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Note the learning rate that the step is taken with."""
        self._rates.append(float(known["optimizer"].param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Keep the state if its turn has come."""
        if state.global_step not in self._steps:
            return
        parameters, states = self._proxy.parameters, known["optimizer"].state
        parts = [{name: _copy(value) for name, value in parameters.items()}]
        for moment in ("exp_avg", "exp_avg_sq"):
            parts.append({name: _copy(_moment(states, value, moment)) for name, value in parameters.items()})
        rate = sum(self._rates) / len(self._rates)
        write_checkpoint(self._folder / str(state.global_step), WarmCheckpoint(state.global_step, rate, *parts))
        self._rates = []

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Take the second moments: exp_avg_sq / (1 - beta2**t)."""
        states = known["optimizer"].state
        for name, parameter in self._proxy.parameters.items():
            moment = _moment(states, parameter, "exp_avg_sq")
            if states.get(parameter):
                moment = moment / (1 - args.adam_beta2 ** float(states[parameter]["step"]))
            self.second_moments[name] = moment.detach().clone()


def _moment(states: Mapping[Tensor, Mapping[str, Tensor]], parameter: Tensor, name: str) -> Tensor:
    """A moment of a parameter; zero where no step gave a gradient."""
    return states[parameter][name] if states.get(parameter) else torch.zeros_like(parameter)


def _copy(value: Tensor) -> Tensor:
    return value.detach().cpu().clone()
