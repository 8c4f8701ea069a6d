"""Load a checkpoint as a proxy: any Hugging Face image-text-to-text model, from a folder or the hub."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from onesteptrain.errors import ConfigError, ModelError
from onesteptrain.proxy.acceleration.compiling import compile_blocks
from onesteptrain.proxy.acceleration.probes import ModelProbes
from onesteptrain.proxy.encoding import Encoder, longest
from onesteptrain.proxy.memory import memory_budget
from onesteptrain.proxy.model import Proxy
from onesteptrain.proxy.quiet import quiet
from onesteptrain.proxy.scope import ScopeOptions, scoped_parameters
from onesteptrain.storage.ownership import is_outside

DTypeName = Literal["auto", "float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded."""

    device: str = "auto"
    """auto, or a torch device such as cpu, cuda, cuda:1, mps."""

    dtype: DTypeName = "auto"
    """Type of the weights. auto is float32 on every device: a small step vanishes in bfloat16 weights."""

    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel; auto is the checkpoint's own."""

    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""

    max_tokens: int | None = None
    """Longest sample, image tokens included; by default what the model's positions allow."""

    batch_tokens: int | None = None
    """Most tokens of one pass, padding included, whatever the batch size; by default 1024 for each thread of a CPU, and
    16384 elsewhere. A pass that does not fit into memory is split all the same."""

    compile: bool = False
    """Compile the blocks of the model when they are first run, which takes about a minute; not used by jvp."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_tokens"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}; it must be at least 1")


def load_proxy(checkpoint: str | Path, scope: ScopeOptions | None = None, options: LoadOptions | None = None) -> Proxy:
    """Load a vision-language model with its processor, in evaluation mode.

    Raises:
        ModelError: there is no such checkpoint, it is no vision-language model, or its weights are not whole.
    """
    options = options or LoadOptions()
    device = pick_device(options.device)
    dtype = torch.float32 if options.dtype == "auto" else getattr(torch, options.dtype)
    check_checkpoint(str(checkpoint), options)
    processor = _load_processor(str(checkpoint), options)
    model = _load_model(str(checkpoint), dtype, options).to(device).eval()
    encoder = Encoder(processor, options.max_tokens or longest(model))
    parameters = scoped_parameters(model, scope or ScopeOptions())
    if options.compile:
        compile_blocks(model)
    forward, backward = (memory_budget(device, options.batch_tokens) for _ in range(2))
    return Proxy(model, encoder, parameters, forward, backward, ModelProbes(), options.compile)


def pick_device(name: str) -> torch.device:
    """The device that a name means; "auto" takes the accelerator if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator()
        return accelerator if accelerator is not None and torch.accelerator.is_available() else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); choose auto or cpu") from error


def check_checkpoint(checkpoint: str, options: LoadOptions) -> None:
    """Refuse what is no vision-language model by its configuration, without loading weights.

    Raises:
        ModelError: there is no such checkpoint, or it is of another kind.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    check_folder(checkpoint)
    try:
        config = AutoConfig.from_pretrained(_base_of(checkpoint), trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(checkpoint, error) from error
    _refuse_sizes(checkpoint, config)
    remote = options.trust_remote_code and "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not remote:
        raise ModelError(
            f"checkpoint {checkpoint!r} is a {config.model_type!r} model, not a vision-language model; "
            "give an image-text-to-text checkpoint such as InternVL, Qwen-VL, SmolVLM or LLaVA"
        )


def _load_model(checkpoint: str, dtype: torch.dtype, options: LoadOptions) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    if (base := _base_of(checkpoint)) != checkpoint:
        _load_model(base, dtype, options)  # what is missing in it is not said with the adapters
    attention = {} if options.attention == "auto" else {"attn_implementation": options.attention}
    asked: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": options.trust_remote_code,
        "output_loading_info": True,
        **attention,
    }
    try:
        with quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, **asked)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint {checkpoint!r}: a file of its weights is broken or holds code in place of numbers, "
            "which is not run; give one with weights in safetensors"
        ) from error
    except (OSError, ValueError, ImportError, RuntimeError, EOFError, KeyError, TypeError, SafetensorError) as error:
        raise _unloadable(checkpoint, error) from error
    model, found = loaded
    _refuse_incomplete(checkpoint, found)
    refuse_not_finite(checkpoint, model)
    return model


def _refuse_incomplete(checkpoint: str, found: Mapping[str, Collection[Any]]) -> None:
    """Refuse weights that are not those of the model; what the model itself says may be ignored is not in `found`."""
    kinds = {"missing_keys": "lacks", "unexpected_keys": "has too many", "mismatched_keys": "has in another shape"}
    for kind, what in kinds.items():
        names = sorted(str(key if isinstance(key, str) else key[0]) for key in found.get(kind, ()))
        if names:
            raise ModelError(
                f"checkpoint {checkpoint!r} {what} weights of its model, {len(names)} in all, such as {names[0]}; "
                "give a whole folder made by save_pretrained, whose config.json is the weights' own"
            )


def refuse_not_finite(checkpoint: str, model: torch.nn.Module) -> None:
    """Refuse a model of which a weight is no finite number.

    Raises:
        ModelError: it is so.
    """
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise ModelError(
                f"checkpoint {checkpoint!r}: a weight of {name} is not finite in {weights.dtype}; "
                "give another checkpoint, or load it in float32"
            )


def _refuse_sizes(checkpoint: str, config: Any) -> None:
    """Refuse a text model without layers, of which nothing but its embeddings would be loaded."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise ModelError(
            f"checkpoint {checkpoint!r} has num_hidden_layers {layers}; it must be at least 1: mend config.json"
        )


def _load_processor(checkpoint: str, options: LoadOptions) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            checkpoint, trust_remote_code=options.trust_remote_code
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(
            f"checkpoint {checkpoint!r} has no usable processor: {first_line(error)}; "
            "save the model's processor into the folder"
        ) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not tokenizer.is_fast:
        raise ModelError(f"checkpoint {checkpoint!r} has no fast tokenizer, which the answer mask needs")
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"checkpoint {checkpoint!r} has no chat template; add chat_template.jinja to the folder")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def check_folder(checkpoint: str) -> None:
    """Refuse a path that looks local and is no checkpoint folder; else the hub would be asked for a path.

    Raises:
        ModelError: it is none, or names weights outside of it.
    """
    path = Path(checkpoint)
    local = path.exists() or checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1
    if local and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        what = "does not exist" if not path.exists() else "has no config.json"
        raise ModelError(
            f"checkpoint folder {checkpoint!r} {what}; give a folder made by save_pretrained or a hub name"
        )
    _refuse_outside(path)


def _refuse_outside(path: Path) -> None:
    """Refuse weights that the index of a checkpoint folder names outside of it."""
    for index in path.glob("*.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} cannot be read ({first_line(error)}); save the checkpoint again") from error
        if foreign := [str(name) for name in names if is_outside(str(name))]:
            raise ModelError(f"{index} names weights outside of its folder ({foreign[0]!r}); save the checkpoint again")


def _base_of(checkpoint: str) -> str:
    """The checkpoint that a folder of adapters sits on; any other checkpoint is its own."""
    file = Path(checkpoint) / "adapter_config.json"
    if not file.is_file():
        return checkpoint
    return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])


def _unloadable(checkpoint: str, error: Exception) -> ModelError:
    return ModelError(
        f"checkpoint {checkpoint!r} cannot be loaded: {first_line(error)}; "
        "give a whole folder made by save_pretrained, or a hub name"
    )


def first_line(error: Exception) -> str:
    """What an error says first, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
