"""From answer tokens to characters of the answer, through the tokenizer of the run's proxy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onesteptrain.data.pool import Turn
from onesteptrain.errors import ModelError, SampleError
from onesteptrain.proxy.encoding import answer_spans
from onesteptrain.reporting.diagnosis.reading import Place, Quoter


def load_quoter(checkpoint: str | Path, *, trust_remote_code: bool = False) -> Quoter:
    """Read a checkpoint's tokenizer and chat template, without its weights.

    Raises:
        ModelError: the checkpoint is not there any more.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            checkpoint, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"the proxy {str(checkpoint)!r} that scored this run cannot be read; put it back") from error
    return lambda sample: token_places(processor, sample.turns)


def token_places(processor: Any, turns: Sequence[Turn]) -> list[Place]:
    """Where each answer token of a conversation stands in the answer; no image is read.

    Raises:
        SampleError: the chat template rewrites the answer.
    """

    def render(messages: list[dict[str, Any]], generation_prompt: bool) -> str:
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt))

    text, spans = answer_spans(render, turns)
    tokenizer = processor.tokenizer
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not has_bos)["offset_mapping"]
    places: list[Place] = []
    before = 0
    for turn, span in zip((turn for turn in turns if turn.role == "assistant"), spans, strict=True):
        places += _places(turn.text, before, text, span, offsets)
        before += len(turn.text) + 1
    return places


def _places(
    answer: str, before: int, text: str, span: tuple[int, int], offsets: Sequence[tuple[int, int]]
) -> list[Place]:
    """Places of one turn's tokens; what stands behind its last character is at its end."""
    start, end = span
    spoken = answer.lstrip()
    if not text[start:end].startswith(spoken.rstrip()):
        raise SampleError(f"the chat template does not keep the answer as it is (answer starts {spoken[:40]!r})")
    shift = len(answer) - len(spoken) - start
    length = len(answer) if text.startswith(spoken, start) else len(answer.rstrip())
    tokens = [(max(first, start), last) for first, last in offsets if first < end and last > start and last > first]
    return [Place(*(before + min(char + shift, length) for char in token)) for token in tokens]
