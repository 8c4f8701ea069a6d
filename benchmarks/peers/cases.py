"""What the contenders are measured on: a model, rows, anchors and the linear layers in scope.

Each case is built once into a folder, so that all contenders read the same weights and the same encoded rows. The loss
of a row is the mean over its answer tokens; the parameters in scope are those of the linear layers but the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.proxy import Encoded, Encoder, LoadOptions, Proxy, load_proxy
from onesteptrain.proxy.acceleration.probes import ModelProbes
from onesteptrain.proxy.memory import CPU_ROWS, MemoryBudget
from onesteptrain.synthetic import SyntheticOptions, make_synthetic
from onesteptrain.synthetic.architectures import Architecture, ModelSize, build_checkpoint

Items = TypeVar("Items", list[Encoded], Tensor)

_NO_LIMIT = 1_000_000
"""Tokens of a pass: for all contenders the batch size alone says how much one holds."""


@dataclass(frozen=True)
class TextCase:
    """A language model of Qwen3's architecture (no biases, so that all peers have one scope) on random tokens."""

    hidden: int
    layers: int
    tokens: int
    """Of each row; the second half is the answer."""

    rows: int
    anchors: int
    batch_size: int = 16
    vocabulary: int = 512


@dataclass(frozen=True)
class VlmCase:
    """A vision-language model with random weights on rows of the digits data."""

    architecture: Architecture
    vision: bool
    """Whether the linear layers of vision tower and projector are in scope too."""

    rows: int = 64
    anchors: int = 16
    batch_size: int = 16


CASES: Mapping[str, TextCase | VlmCase] = {
    "text": TextCase(hidden=128, layers=4, tokens=64, rows=128, anchors=64),
    "text, larger": TextCase(hidden=256, layers=6, tokens=128, rows=64, anchors=16),
    "internvl": VlmCase("internvl", vision=True),
    "qwen3_vl": VlmCase("qwen3_vl", vision=True),
    "qwen3_vl, language": VlmCase("qwen3_vl", vision=False),
}

_SIZE = ModelSize(
    hidden=128, layers=4, mlp=384, vision_hidden=64, vision_layers=4, vision_heads=4, vision_mlp=256, image_size=64
)


@dataclass(frozen=True)
class Loaded:
    """A case in memory, for a number of anchor groups."""

    proxy: Proxy
    """The model with exactly the parameters in scope."""

    layers: Sequence[str]
    """Names of the linear layers in scope."""

    rows: Sequence[Encoded]
    """In order of length, so that batches in order are little padded for all contenders."""

    anchors: Sequence[Encoded]
    batch_size: int
    groups: int

    @property
    def grouped(self) -> list[list[Encoded]]:
        """The anchors in groups of one size."""
        size = len(self.anchors) // self.groups
        return [list(self.anchors[start : start + size]) for start in range(0, size * self.groups, size)]

    def group_means(self, by_anchor: Tensor) -> Tensor:
        """From one column an anchor to one column a group."""
        return by_anchor.reshape(len(by_anchor), self.groups, -1).mean(2)

    def collate(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A padded batch as a dictionary, the answer mask under `answer`."""
        batch = self.proxy.batch(samples)
        return {**batch.inputs, "answer": batch.answer}


def mean_losses(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean loss over the answer tokens of each row; written without onesteptrain, which is what is measured."""
    inputs = {name: value for name, value in batch.items() if name != "answer"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none")
    answer = batch["answer"][:, 1:].to(loss.dtype)
    return (loss.view_as(answer) * answer).sum(1) / answer.sum(1)


def build(name: str, folder: Path) -> None:
    """Make a case: checkpoint, rows and anchors in a new folder."""
    case = CASES[name]
    folder.mkdir(parents=True)
    samples = _build_text(case, folder) if isinstance(case, TextCase) else _build_vlm(case, folder)
    samples = [*sorted(samples[: case.rows], key=lambda sample: sample.tokens), *samples[case.rows :]]
    torch.save([tuple(sample) for sample in samples], folder / "rows.pt")


def load(
    name: str,
    folder: Path,
    *,
    groups: int,
    rows: int | None = None,
    attention: str = "sdpa",
    compiled: bool = False,
) -> Loaded:
    """Read a case; rows: how many, where not all of them; compiled: for vision-language models alone."""
    case = CASES[name]
    samples = [Encoded(*parts) for parts in torch.load(folder / "rows.pt")]
    keep = spread(samples[: case.rows], rows)
    proxy = (
        _load_text(case, folder, attention) if isinstance(case, TextCase) else _load_vlm(folder, attention, compiled)
    )
    vision = isinstance(case, TextCase) or case.vision
    layers = [
        layer
        for layer, module in proxy.model.named_modules()
        if isinstance(module, nn.Linear) and layer != "lm_head" and (vision or "language_model" in layer)
    ]
    return Loaded(_scoped(proxy, layers), layers, keep, samples[case.rows :], case.batch_size, groups)


def spread(items: Items, count: int | None) -> Items:
    """Some of the items at even distances; all of them for None."""
    return items[:: len(items) // count] if count else items


def _scoped(proxy: Proxy, layers: Sequence[str]) -> Proxy:
    wanted = {f"{layer}.{part}" for layer in layers for part, _ in proxy.model.get_submodule(layer).named_parameters()}
    parameters = {}
    for name, parameter in proxy.model.named_parameters():
        parameter.requires_grad_(name in wanted)
        if name in wanted:
            parameters[name] = parameter
    forward, backward = (MemoryBudget(_NO_LIMIT, CPU_ROWS) for _ in range(2))
    return Proxy(proxy.model, proxy.encoder, parameters, forward, backward, ModelProbes(), proxy.compiled)


def _build_text(case: TextCase, folder: Path) -> list[Encoded]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=3 * case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=case.hidden // 4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    tokens = torch.randint(3, case.vocabulary, (case.rows + case.anchors, case.tokens))
    answer = torch.arange(case.tokens) >= case.tokens // 2
    return [Encoded({"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}, answer) for ids in tokens]


def _load_text(case: TextCase, folder: Path, attention: str) -> Proxy:
    """The plain language model as a proxy: load_proxy takes vision-language models alone."""
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation=attention)
    encoder = Encoder(SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)), case.tokens)
    return Proxy(model.eval(), encoder, {})


def _build_vlm(case: VlmCase, folder: Path) -> list[Encoded]:
    world = make_synthetic("digits", SyntheticOptions(pool_rows=case.rows, heldout_rows=case.anchors), folder / "world")
    samples = [row for path in (world.pool, world.heldout) for row in open_pool(path) if isinstance(row, Sample)]
    texts = [turn.text for sample in samples for turn in sample.turns]
    build_checkpoint(case.architecture, folder / "model", size=_SIZE, texts=texts)
    encoder = _load_vlm(folder, "sdpa").encoder
    return [encoder.encode(sample) for sample in samples]


def _load_vlm(folder: Path, attention: str, compiled: bool = False) -> Proxy:
    kernel: Literal["eager", "sdpa"] = "eager" if attention == "eager" else "sdpa"
    options = LoadOptions(device="cpu", attention=kernel, compile=compiled)
    return load_proxy(folder / "model", options=options)
