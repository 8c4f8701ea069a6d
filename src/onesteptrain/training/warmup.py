"""Warm up the proxy: fine-tune it on a few per cent of the pool, and keep the optimizer's second moments.

A little is better than much: in the paper a warm-up on 5 % of the pool gives the best selection, and one to convergence
the worst (arXiv:2605.07488). Whether a row is drawn depends on the seed and its uid alone, so neither the order of the
pool nor its other rows matter, and memory holds the drawn rows only. Methods that look back at the training, such as
LESS, get states from on the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
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
from onesteptrain.storage.seeds import uniform
from onesteptrain.training.encodings import encode_all
from onesteptrain.training.finetuning import FinetuneOptions, Progress, finetune
from onesteptrain.utility.checkpoints import WarmCheckpoint, write_checkpoint

CHECKPOINTS = "checkpoints"
MODEL = "model"
MOMENTS = "second_moments.safetensors"
FACTS = "warmup.json"


@dataclass(frozen=True)
class WarmupOptions:
    """What the proxy is warmed up on, and how."""

    share: float = 0.05
    """Share of the pool; each row is drawn with this chance."""

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


def warm_up(
    proxy: Proxy,
    samples: Iterable[Sample | Unreadable],
    options: WarmupOptions,
    out: Path,
    *,
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
        overwrite: Replace an earlier folder.
        progress: Told after each step.

    Raises:
        ConfigError: the training has fewer steps than there are checkpoints to keep.
        PoolError: no row was drawn, or none of them can be used.
        RunError: the output is taken.
        ScoreError: the training diverged.
    """
    with whole_folder(out, marker=FACTS, overwrite=overwrite) as part:
        encodings, refused = encode_all(proxy.encoder, draw(samples, options.share, seed=options.finetune.seed))
        drawn = len(encodings) + len(refused)
        if not len(encodings):
            raise PoolError(_nothing(drawn, refused, options.share))
        keepers = [_Keeper(proxy, part / CHECKPOINTS, options.checkpoints)] if options.checkpoints else []
        result = finetune(proxy, encodings, options.finetune, keep_moments=True, progress=progress, callbacks=keepers)
        proxy.save(part / MODEL)
        moments = {name: value.cpu().contiguous() for name, value in result.second_moments.items()}
        save_file(moments, part / MOMENTS, metadata={"format": "pt"})
        done = WarmupResult(
            out, drawn, len(encodings), refused, steps=result.steps, seconds=result.seconds, losses=result.losses
        )
        facts = done._asdict() | {"tokens": result.tokens, "reasons": most_common(refused)}
        del facts["folder"], facts["refused"]
        write_json(part / FACTS, {"options": dataclasses.asdict(options), **facts})
    return done


def draw(samples: Iterable[Sample | Unreadable], share: float, *, seed: int) -> Iterator[Sample | Unreadable]:
    """The rows whose hash of seed and uid falls below the share."""
    for sample in samples:
        if uniform("warm-up", seed, sample.uid) < share:
            yield sample


def most_common(refused: dict[str, str]) -> list[tuple[str, int]]:
    """The ten most frequent reasons, and how many rows share each."""
    return Counter(refused.values()).most_common(10)


class _Keeper(TrainerCallback):
    """Writes evenly spaced states of a training, each as soon as it is reached."""

    def __init__(self, proxy: Proxy, folder: Path, count: int) -> None:
        self._proxy = proxy
        self._folder = folder
        self._count = count
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
        write_checkpoint(self._folder / str(state.global_step), self._state(known["optimizer"], state.global_step))
        self._rates = []

    def _state(self, optimizer: Any, step: int) -> WarmCheckpoint:
        weights, first, second = {}, {}, {}
        for name, parameter in self._proxy.parameters.items():
            moments = optimizer.state.get(parameter) or {}
            weights[name] = _copy(parameter)
            first[name] = _copy(moments.get("exp_avg", torch.zeros_like(parameter)))
            second[name] = _copy(moments.get("exp_avg_sq", torch.zeros_like(parameter)))
        return WarmCheckpoint(step, sum(self._rates) / len(self._rates), weights, first, second)


def _copy(value: Tensor) -> Tensor:
    return value.detach().cpu().clone()


def _nothing(drawn: int, refused: dict[str, str], share: float) -> str:
    if not drawn:
        return f"a share of {share} draws no row from this pool; raise --share"
    uid, reason = next(iter(refused.items()))
    return f"none of the {drawn} rows drawn can be used, such as {uid!r}: {reason}; mend the pool, or raise --share"
