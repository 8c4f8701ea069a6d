"""Numbers of answers and gradients, one sample at a time in float64, without the package's code."""

from __future__ import annotations

import functools

import torch

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy
from tests.building import checkpoint, png, sample
from tests.oracles import BruteForce, _open

BROKEN = Sample(
    "bad", 9, (Turn("user", (ImageRef(b"\x89PNG\r\n broken", "broken.png"), "What?")), Turn("assistant", ("7",)))
)


def conversation() -> Sample:
    """Two questions and two answers of different length, one picture, and a system turn."""
    turns = (
        Turn("system", ("Answer in words.",)),
        Turn("user", (ImageRef(png(77), "77"), "Which is larger?")),
        Turn("assistant", ("The answer is B.",)),
        Turn("user", ("What is 3 plus 4?",)),
        Turn("assistant", ("It is seven.\nThe answer is 7.",)),
    )
    return Sample("turns", 8, turns)


SAMPLES = [sample(0, images=1), sample(1, images=0), conversation(), sample(4, images=2), sample(5, images=0)]
"""One picture, none, several turns, two pictures, and another length."""


@functools.cache
def wide_proxy(scope: str = "all") -> Proxy:
    """A float64 proxy."""
    options = LoadOptions(dtype="float64", max_tokens=4096)
    return load_proxy(checkpoint("qwen3_vl"), ScopeOptions(scope, last_layers=1), options)


@functools.cache
def oracle() -> Oracle:
    return Oracle(checkpoint("qwen3_vl"))


class Oracle(BruteForce):
    """A float64 model with the answers of every turn, found by rendering what stands before and after each."""

    def answer_logits(self, one: Sample, model=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and tokens of all answers."""
        messages = [_message(turn) for turn in one.turns]
        images = [_open(part) for turn in one.turns for part in turn.parts if isinstance(part, ImageRef)]
        inputs = self._process(self._render(messages, False), images)
        ids = inputs["input_ids"][0]
        places: list[int] = []
        for index, turn in enumerate(one.turns):
            if turn.role == "assistant":
                places += self._places(messages[: index + 1], one.turns[: index + 1], ids.tolist())
        logits = (model or self.model)(**inputs).logits[0].double()
        return logits[[place - 1 for place in places]], ids[places]

    def loss(self, one: Sample, model=None) -> torch.Tensor:
        """Mean over the answer tokens of all turns."""
        logits, tokens = self.answer_logits(one, model)
        return -torch.stack([row.log_softmax(-1)[token] for row, token in zip(logits, tokens, strict=True)]).mean()

    def gradient(self, one: Sample, model=None) -> dict[str, torch.Tensor]:
        """Gradient of the loss, for the parameters that enter it."""
        model = model or self.model
        model.zero_grad()
        self.loss(one, model).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return gradients

    def _places(self, messages, turns, ids: list[int]) -> list[int]:
        images = [_open(part) for turn in turns for part in turn.parts if isinstance(part, ImageRef)]
        first = self._process(self._render(messages[:-1], True).rstrip(), images)["input_ids"].shape[1]
        end = self._process(self._render(messages, False).rstrip(), images)["input_ids"].shape[1]
        decode = self.processor.tokenizer.decode
        while not decode(ids[first]).strip():
            first += 1
        return list(range(first, end))


def _message(turn: Turn) -> dict:
    content = [
        {"type": "image"} if isinstance(part, ImageRef) else {"type": "text", "text": part} for part in turn.parts
    ]
    return {"role": turn.role, "content": content}
