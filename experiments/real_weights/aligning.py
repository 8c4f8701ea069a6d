"""Teach tower and connector to say a chart in the language model's own word embeddings; the language model rests.

Each of the sixteen image tokens is to be the embedding of one word: of each bar its colour, its first digit, a zero or
a comma, and a comma; full stops where there is no fourth bar.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from onesteptrain.storage.atomic import whole
from onesteptrain.synthetic.chart_drawing import PALETTE, Chart
from onesteptrain.synthetic.charts import ChartProblem
from onesteptrain.synthetic.making import Part, problems

WORDS = [*(f" {colour}" for colour in PALETTE), *map(str, range(10)), ",", "."]
SLOTS = 16

ROWS, CHECKED, BATCH, RATE = 8000, 300, 48, 1.5e-3
SQUARED_ERROR = 0.3
"""Weight of the distance to the right word, beside the choice among the words."""


class Charts(NamedTuple):
    """What is shown, and what is to be said of it."""

    pixels: Tensor
    """ "chart 3 height width", bytes."""

    words: Tensor
    """ "chart slot": places in WORDS."""


def align(source: Path, out: Path, *, steps: int) -> None:
    """Train for some steps on charts of the part that neither pool nor anchors nor benchmark show."""
    torch.manual_seed(0)
    chance = np.random.default_rng(11)
    processor = AutoProcessor.from_pretrained(source)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    eyes = Eyes(model, processor)
    shown, check = _charts(ROWS, "pretrain", chance), _charts(CHECKED, "heldout", chance)
    weights = [*eyes.tower.parameters(), *eyes.connector.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.02, betas=(0.9, 0.98))
    eyes.tower.train()
    for step in range(1, steps + 1):
        fall = max(0.02, min(1.0, 1.6 * (1 - step / steps)))
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, step / 30) * fall
        pick = torch.from_numpy(chance.integers(len(shown.pixels), size=BATCH))
        choice, distance, _ = eyes.losses(shown.pixels[pick], shown.words[pick])
        (choice + SQUARED_ERROR * distance).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 40 == 0 or step == steps:
            print(f"align {step}: loss {float(choice.detach()):.3f}; {eyes.measure(check)}", flush=True)
    eyes.tower.to(memory_format=torch.contiguous_format)
    with whole(out) as part:
        model.eval().save_pretrained(part)
        processor.save_pretrained(part)


class Eyes:
    """Tower and connector of a model, and the words that they are to say."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.tower, self.connector = model.model.vision_tower, model.model.multi_modal_projector
        self.tower.to(memory_format=torch.channels_last)
        self._processor = processor.image_processor
        ids = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
        if any(len(one) != 1 for one in ids):
            raise SystemExit("a word of the charts is more than one token")
        self._table = model.get_input_embeddings().weight.detach()[[one[0] for one in ids]].clone()
        apart = torch.cdist(self._table, self._table).square()
        self._sharpness = 20 / float(apart[apart > 1e-6].mean())

    def losses(self, pixels: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy of the choice among words, squared distance to the right one, and the logits."""
        shown = self._processor(list(pixels), return_tensors="pt")["pixel_values"]
        hidden = self.tower(shown.contiguous(memory_format=torch.channels_last)).last_hidden_state
        said = self.connector(hidden.flatten(2).permute(0, 2, 1))
        logits = -self._sharpness * (said.unsqueeze(2) - self._table).square().sum(-1)
        distance = (said - self._table[words]).square().mean() / self._table.var()
        return nn.functional.cross_entropy(logits.flatten(0, 1), words.flatten()), distance, logits

    @torch.no_grad()
    def measure(self, charts: Charts) -> str:
        """Share of words, and of whole charts, that are right."""
        self.tower.eval()
        right = []
        for pixels, words in zip(charts.pixels.split(100), charts.words.split(100), strict=True):
            right.append(self.losses(pixels, words)[2].argmax(-1) == words)
        self.tower.train()
        found = torch.cat(right)
        return f"held-out words right {found.float().mean():.3f}, whole charts {found.all(1).float().mean():.3f}"


def _charts(count: int, part: Part, chance: np.random.Generator) -> Charts:
    drawn = problems(ChartProblem, count, part, chance)
    pictures = [np.asarray(Image.open(io.BytesIO(one.picture(part))).convert("RGB")) for one in drawn]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return Charts(pixels, torch.tensor([[WORDS.index(word) for word in said(one.chart)] for one in drawn]))


def said(chart: Chart) -> Sequence[str]:
    """A chart in sixteen words."""
    words = []
    for colour, value in zip(chart.colours, chart.values, strict=True):
        digits = str(value)
        words += [f" {colour}", digits[0], "0" if len(digits) > 1 else ",", ","]
    return words + ["."] * (SLOTS - len(words))
