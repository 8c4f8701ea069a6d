"""How large a small checkpoint is."""

from __future__ import annotations

from dataclasses import dataclass

from onesteptrain.errors import ConfigError


@dataclass(frozen=True)
class ModelSize:
    """How large a checkpoint is; widths and heights are counted in numbers of a vector, images in pixels."""

    hidden: int = 64
    """Width of the language model."""

    layers: int = 3
    """Layers of the language model."""

    heads: int = 4
    """Attention heads of the language model."""

    kv_heads: int = 2
    """Key-value heads of the language model."""

    mlp: int = 64
    """Width of the language model's feed-forward layers."""

    vision_hidden: int = 16
    """Width of the vision tower."""

    vision_layers: int = 2
    """Layers of the vision tower."""

    vision_heads: int = 2
    """Attention heads of the vision tower."""

    vision_mlp: int = 32
    """Width of the vision tower's feed-forward layers."""

    image_size: int = 32
    """Side of the square that an image is scaled to; Qwen-VL keeps the shape, from this area to nine times as much."""

    patch_size: int = 8
    """Side of a patch; all families but LLaVA merge two by two patches into one token."""

    vocabulary: int = 300
    """Most entries of the tokenizer, its 256 bytes and the special tokens included."""

    def __post_init__(self) -> None:
        if self.hidden % (8 * self.heads) or self.vision_hidden % (8 * self.vision_heads):
            raise ConfigError(
                f"a width of {self.hidden} with {self.heads} heads, and {self.vision_hidden} with {self.vision_heads}: "
                "each head must be a multiple of 8 wide"
            )
        if self.image_size % (2 * self.patch_size):
            raise ConfigError(f"image_size is {self.image_size}; it must be a multiple of {2 * self.patch_size}")
