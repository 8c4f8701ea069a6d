"""The books of a training: losses, tokens and seconds, kept with every checkpoint."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from onesteptrain.errors import ScoreError
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.proxy.encoding import collate
from onesteptrain.storage.atomic import write_json
from onesteptrain.training.finetuning.options import Progress

IGNORED = -100
"""Label of a token that is not trained on."""

BOOKS = "ledger.json"


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
        """Encode samples and pad them to one batch; labels are -100 wherever the assistant did not write."""
        samples = [self._samples[place["sample"]] for place in places]
        batch = collate(samples, pad_token_id=self._pad)
        labels = batch.inputs["input_ids"].masked_fill(~batch.answer, IGNORED)
        labels[:, 0] = IGNORED  # nothing predicts the first token
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
