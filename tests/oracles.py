"""Slow and obvious routes to the numbers that the package computes, written without its code."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from onesteptrain.data.pool import ImageRef, Sample


class BruteForce:
    """A float64 model that takes real steps, one sample at a time, with its own way to find the answer tokens."""

    def __init__(self, checkpoint: Path, scope=lambda name: True) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float64).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.scope = scope

    def token_losses(self, sample: Sample, model=None) -> torch.Tensor:
        """Losses of the answer tokens of a single-turn sample."""
        inputs, first, end = self._inputs(sample)
        logits = (model or self.model)(**inputs).logits[0]
        chances = logits.double().log_softmax(-1)
        ids = inputs["input_ids"][0]
        return torch.stack([-chances[place - 1, ids[place]] for place in range(first, end)])

    def loss(self, sample: Sample, model=None) -> torch.Tensor:
        return self.token_losses(sample, model).mean()

    def utility(self, sample: Sample, anchors: list[Sample], step_size: float, scale=None) -> float:
        """L(w) - L(w'): a deep copy takes a step on the sample; `scale` maps a name to Adam's multiplier."""
        stepped = copy.deepcopy(self.model)
        self.loss(sample, stepped).backward()
        with torch.no_grad():
            for name, parameter in stepped.named_parameters():
                if parameter.grad is not None and self.scope(name):
                    parameter -= step_size * parameter.grad * (1 if scale is None else scale[name])
            before = sum(self.loss(anchor) for anchor in anchors) / len(anchors)
            after = sum(self.loss(anchor, stepped) for anchor in anchors) / len(anchors)
        return float(before - after)

    def _inputs(self, sample: Sample):
        images = [_open(part) for turn in sample.turns for part in turn.parts if isinstance(part, ImageRef)]
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if isinstance(part, ImageRef) else {"type": "text", "text": part}
                    for part in turn.parts
                ],
            }
            for turn in sample.turns
        ]
        inputs = self._process(self._render(messages, False), images)
        first = self._process(self._render(messages[:-1], True).rstrip(), images)["input_ids"].shape[1]
        ids = inputs["input_ids"][0].tolist()
        decode = self.processor.tokenizer.decode
        while not decode(ids[first]).strip():  # white space between the role and the answer
            first += 1
        end = len(ids)
        while not decode(ids[end - 1]).strip():  # white space after the end-of-turn mark
            end -= 1
        return inputs, first, end

    def _render(self, messages, generation_prompt):
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)

    def _process(self, text, images):
        inputs = self.processor(text=[text], images=[images] if images else None, return_tensors="pt")
        return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def _open(ref: ImageRef) -> Image.Image:
    source = io.BytesIO(ref.source) if isinstance(ref.source, bytes) else ref.source
    return Image.open(source).convert("RGB")
