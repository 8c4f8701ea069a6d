"""Which parameters take the simulated step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from onesteptrain.errors import ConfigError, ModelError

Scope = Literal["all", "language", "last", "lora"]


@dataclass(frozen=True)
class ScopeOptions:
    """The part of the proxy that takes the step."""

    scope: Scope = "all"
    """all: every parameter; language: the language model without vision tower and projector;
    last: the last few layers of the language model; lora: adapters on its linear layers."""

    last_layers: int = 4
    """How many layers "last" means."""

    lora_rank: int = 8
    """Rank of fresh adapters, where the checkpoint has none."""

    def __post_init__(self) -> None:
        if self.last_layers < 1 or self.lora_rank < 1:
            raise ConfigError(
                f"last_layers is {self.last_layers} and lora_rank {self.lora_rank}; each must be at least 1"
            )


def scoped_parameters(model: Any, options: ScopeOptions) -> dict[str, nn.Parameter]:
    """Choose the parameters of a scope, by name; all others are frozen.

    Raises:
        ModelError: the model has no language model, or fewer layers than asked for.
    """
    if options.scope == "lora":
        _ensure_adapters(model, options.lora_rank)
    wanted = _wanted(model, options)
    parameters = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in wanted or (options.scope == "lora" and "lora_" in name))
        if parameter.requires_grad:
            parameters[name] = parameter
    return parameters


def decoder_of(model: Any) -> nn.Module:
    """The language model inside a vision-language model."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not isinstance(decoder, nn.Module) or not hasattr(decoder, "layers"):
        raise ModelError(f"{type(model).__name__} shows no language model with layers; use --scope all")
    return decoder


def _wanted(model: Any, options: ScopeOptions) -> set[int]:
    if options.scope == "all":
        return {id(parameter) for parameter in model.parameters() if parameter.is_floating_point()}
    if options.scope == "lora":
        return set()
    decoder = decoder_of(model)
    if options.scope == "language":
        modules = [decoder, *([head] if (head := model.get_output_embeddings()) is not None else [])]
        return {id(parameter) for module in modules for parameter in module.parameters()}
    layers: Any = decoder.layers
    if options.last_layers > len(layers):
        raise ModelError(
            f"the language model has {len(layers)} layers, {options.last_layers} were asked for; lower last_layers"
        )
    return {id(parameter) for layer in layers[-options.last_layers :] for parameter in layer.parameters()}


def _ensure_adapters(model: Any, rank: int) -> None:
    """Give the linear layers of the language model adapters, drawn from a fixed seed, unless it has some."""
    if any("lora_" in name for name, _ in model.named_parameters()):
        return
    from peft import LoraConfig

    inside = {id(module) for module in decoder_of(model).modules()}
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
