"""From a sample to model inputs, with a mask of the tokens that the assistant wrote.

The mask comes from the chat template itself: a conversation is rendered up to each assistant turn, once with the
generation prompt and once with the turn, and what the second adds to the first is the answer with its end-of-turn
mark. Characters become tokens through the tokenizer's own offsets and the processor's record of how it expanded image
placeholders. The masked tokens are then decoded and compared with the answer, so that a template that rewrites
answers is refused instead of being scored wrongly.

Answers may count differently in the loss, or not at all (`Turn`). The loss of a sample is the mean of its answer tokens
by their weights, sum(w * loss) / sum(w); so each token's loss is multiplied, here and nowhere else, by w over the mean
of the sample's w, and whoever takes a plain mean of what comes out has the weighted one.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from onesteptrain.data.formats.loss_weights import NOTHING_LEFT
from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.errors import SampleError
from onesteptrain.proxy.acceleration.plan import PassPlan
from onesteptrain.proxy.thinking import kept_forms, span_by_stand_in, without_wrapper


class Encoded(NamedTuple):
    """One sample as the model reads it."""

    inputs: dict[str, Tensor]
    """What the processor made: a batch of one."""

    answer: Bool[Tensor, " token"]
    """True for the tokens in the loss: what the assistant wrote, its end-of-turn mark included, as far as it counts."""

    weight: Float[Tensor, " token"] | None = None
    """What each of them counts; None where all count 1."""

    @property
    def tokens(self) -> int:
        """Length in tokens, image tokens included."""
        return int(self.answer.numel())


class Answers(NamedTuple):
    """Where the answer tokens of a batch are predicted, sample after sample, in reading order."""

    place: Int[Tensor, " answer_token"]
    """Of the token whose logits predict it: the one before, counted through all rows of the batch."""

    target: Int[Tensor, " answer_token"]
    """The token that stands there."""

    sample: Int[Tensor, " answer_token"]
    """Which sample of the batch each token belongs to."""

    lengths: tuple[int, ...]
    """Answer tokens of each sample."""

    weight: Float[Tensor, " answer_token"] | None = None
    """What each token's loss is multiplied with; the mean over each sample is 1. None stands for 1 everywhere."""


class Batch(NamedTuple):
    """Several samples, padded to one length."""

    inputs: dict[str, Tensor]
    answer: Bool[Tensor, "sample token"]
    weight: Float[Tensor, "sample token"] | None = None
    """As each sample has it; None where all answer tokens of all samples count 1."""

    located: Answers | None = None
    """The answers, once `to` has located them."""

    plan: PassPlan = PassPlan()
    """How passes over it run."""

    @property
    def kind(self) -> tuple[str, ...]:
        """Names of the inputs: samples with and without images run through different parts of a model."""
        return tuple(sorted(self.inputs))

    @property
    def answers(self) -> Answers:
        """Where the answers are."""
        return self.located or find_answers(self.inputs["input_ids"], self.answer, self.weight)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same batch on a device; pixels take the model's floating-point type.

        The answers are located before: on a device, to look for them would make the host wait for it.
        """

        def move(value: Tensor) -> Tensor:
            return sent(value, device, dtype if value.is_floating_point() else None)

        place, target, sample, lengths, weight = self.answers
        if weight is not None:  # some devices know no float64
            weight = sent(weight.to(torch.promote_types(dtype, torch.float32)), device)
        located = Answers(move(place), move(target), move(sample), lengths, weight)
        inputs = {name: move(value) for name, value in self.inputs.items()}
        # as they are: half precision cannot count far
        positions = None if self.plan.positions is None else sent(self.plan.positions, device)
        plan = self.plan._replace(positions=positions)
        return self._replace(inputs=inputs, answer=move(self.answer), located=located, plan=plan)


@dataclass(frozen=True)
class Encoder:
    """Encodes samples with a checkpoint's own processor and chat template."""

    processor: Any
    """A Hugging Face processor with a fast tokenizer and a chat template."""

    max_tokens: int
    """A longer sample is refused with a reason: cutting it would change what is scored."""

    prefetched: dict[int, tuple[Sample, Callable[[], Encoded]]] = field(default_factory=dict, compare=False, repr=False)
    """Samples that are encoded elsewhere, by identity, and how to get at what came out: see `prefetch`."""

    def __getstate__(self) -> dict[str, Any]:
        return {"processor": self.processor, "max_tokens": self.max_tokens, "prefetched": {}}

    def encode(self, sample: Sample) -> Encoded:
        """Tokenise a sample, prepare its images and mark its answers; or take what was prefetched.

        Raises:
            SampleError: an image cannot be read, the sample is too long, or its answers cannot be found in the tokens.
        """
        known = self.prefetched.pop(id(sample), None)
        return known[1]() if known is not None and known[0] is sample else self._encode(sample)

    def _encode(self, sample: Sample) -> Encoded:
        images = [load_image(image) for image in sample.images]
        try:
            text, spans = answer_spans(self._render, sample.turns)
            inputs = self._process(text, images)
        except SampleError:
            raise
        except Exception as error:
            raise SampleError(f"the processor refused this sample ({type(error).__name__}: {error})") from error
        replaced = _replacements(inputs.pop("text_replacement_offsets", None))
        if len(replaced) != len(images):
            raise SampleError(
                f"{len(images)} images but {len(replaced)} image marks after the chat template; "
                "remove the model's own image token from the text"
            )
        offsets = inputs.pop("offset_mapping")[0]
        masks = [_tokens_in(_expanded(span, replaced), offsets) for span in spans]
        self._check(inputs["input_ids"][0], masks, sample.turns)
        weight = torch.zeros(len(offsets))
        for mask, answer in zip(masks, answers_of(sample.turns), strict=True):
            weight[mask] = answer.weight
        for span in unlearned_spans(text, spans, sample.turns):
            weight[_tokens_in(_expanded(span, replaced), offsets)] = 0
        encoded = _encoded(dict(inputs), weight)
        if encoded.tokens > self.max_tokens:
            raise SampleError(
                f"{encoded.tokens} tokens are more than the limit of {self.max_tokens}; "
                "raise --max-tokens, or shorten the sample"
            )
        return encoded

    def prompt(self, turns: Sequence[Turn]) -> dict[str, Tensor]:
        """Inputs for generating the next assistant turn: a batch of one."""
        images = [load_image(part) for turn in turns for part in turn.parts if isinstance(part, ImageRef)]
        inputs = self._process(self._render(_messages(turns), True), images)
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "offset_mapping"}

    def _render(self, messages: list[dict[str, Any]], generation_prompt: bool) -> str:
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        return str(text)

    def _process(self, text: str, images: list[Any]) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return dict(
            self.processor(
                text=[text],
                images=[images] if images else None,
                return_tensors="pt",
                return_offsets_mapping=True,
                return_text_replacement_offsets=True,
                **({"add_special_tokens": False} if has_bos else {}),
            )
        )

    def _check(self, ids: Tensor, masks: list[Tensor], turns: Sequence[Turn]) -> None:
        """Refuse a mask whose tokens do not read as the assistant's words; white space is the tokenizer's affair."""
        tokenizer = self.processor.tokenizer
        for mask, turn in zip(masks, answers_of(turns), strict=True):
            marked = _squeezed(tokenizer.decode(ids[mask], skip_special_tokens=True))
            if marked and any(marked == _squeezed(text) for text in kept_forms(turn.text)):
                continue
            # a tokenizer may rewrite words, such as to small letters: then both ways must read alike
            plain = tokenizer(turn.text, add_special_tokens=False)["input_ids"]
            wanted = _squeezed(tokenizer.decode(plain, skip_special_tokens=True))
            if marked != wanted or not wanted:
                raise SampleError(
                    "the chat template does not keep the answer as it is "
                    f"(answer starts {turn.text[:40]!r}, template gives {marked[:40]!r}); "
                    "use a template that leaves assistant turns unchanged"
                )


def answer_spans(render: Any, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and find what each assistant turn adds to it.

    Args:
        render: Function of messages and a flag for the generation prompt, giving text.
        turns: The conversation.

    Returns:
        The rendered text, and a half-open range of characters for each assistant turn: the answer with its end-of-turn
        mark, without the white space around the two.

    Raises:
        SampleError: the template rewrites earlier turns, so that the ranges cannot be told apart.
    """
    messages = _messages(turns)
    full = render(messages, False)
    spans = []
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = render(messages[:index], True).rstrip()
        after = render(messages[: index + 1], False) if index + 1 < len(turns) else full
        if after.startswith(before) and full.startswith(after.rstrip()):
            added = after[len(before) :]
            start = len(before) + len(added) - len(added.lstrip())
            spans.append(without_wrapper(full, (start, len(after.rstrip())), turn.text))
        elif (span := span_by_stand_in(render, messages, index, full)) is not None:
            spans.append(span)
        else:
            raise SampleError(
                f"the chat template rewrites turns that stand before turn {index + 1}, so its answer cannot be "
                "located; give each answer a row of its own, or a checkpoint whose chat template only appends"
            )
    return full, spans


def answers_of(turns: Sequence[Turn]) -> list[Turn]:
    """The assistant turns."""
    return [turn for turn in turns if turn.role == "assistant"]


def unlearned_spans(text: str, spans: Sequence[tuple[int, int]], turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """Half-open ranges of a rendered conversation that answers leave out of the loss.

    Args:
        text: The rendered text.
        spans: Where each answer stands in it, as `answer_spans` gives it.
        turns: The conversation.

    Raises:
        SampleError: the template changes an answer of which a part is left out.
    """
    found = []
    for (first, last), answer in zip(spans, answers_of(turns), strict=True):
        if not answer.unlearned:
            continue
        words = answer.text.strip()
        start = text.find(words, first, last) - answer.text.index(words)
        if start + answer.text.index(words) < first:
            raise SampleError(f"the chat template does not keep the answer as it is (it starts {words[:40]!r})")
        end = start + len(answer.text)
        found += [(start + begins, last if start + ends > end else start + ends) for begins, ends in answer.unlearned]
    return found


def kind_of(samples: Sequence[Encoded]) -> tuple[str, ...]:
    """The kind of the batch that samples make; see `Batch.kind`."""
    return tuple(sorted({name for sample in samples for name in sample.inputs}))


def longest(model: Any) -> int:
    """How many tokens of a sample a model can number."""
    text = model.config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 1_000_000)


def find_answers(
    input_ids: Int[Tensor, "sample token"],
    answer: Bool[Tensor, "sample token"],
    weight: Float[Tensor, "sample token"] | None = None,
) -> Answers:
    """Find where answer tokens are predicted; nothing predicts the first token of a row."""
    row, column = answer[:, 1:].nonzero(as_tuple=True)
    counts = answer[:, 1:].sum(1)
    lengths = tuple(counts.tolist())
    if weight is not None:
        weight = weight[row, column + 1].double()
        weight = weight * counts[row] / weight.new_zeros(len(lengths)).index_add(0, row, weight)[row]
    return Answers(row * answer.shape[1] + column, input_ids[row, column + 1], row, lengths, weight)


def collate(samples: Sequence[Encoded], *, pad_token_id: int, side: Literal["left", "right"] = "right") -> Batch:
    """Pad samples on one side and join them: on the right to be scored or trained on, on the left to be continued.

    Tensors that run along the tokens are padded; image tensors are joined along their first dimension, after padding
    the others with zeros where images of different size or number stand side by side (Idefics3 ignores zero images).
    """
    longest = max(sample.tokens for sample in samples)
    names = dict.fromkeys(name for sample in samples for name in sample.inputs)
    joined = {}
    for name in names:
        values = [(sample.inputs[name], sample.tokens) for sample in samples if name in sample.inputs]
        if all(value.shape == (1, tokens) for value, tokens in values):
            fill = pad_token_id if name == "input_ids" else 0
            joined[name] = torch.cat([_pad(value, (1, longest), fill, side) for value, _ in values])
        else:
            inner = [max(sizes) for sizes in zip(*(value.shape[1:] for value, _ in values), strict=True)]
            joined[name] = torch.cat([_pad(value, (value.shape[0], *inner), 0) for value, _ in values])
    answer = torch.stack([_pad(sample.answer, (longest,), 0, side) for sample in samples])
    if all(sample.weight is None for sample in samples):
        return Batch(joined, answer)
    weights = [sample.answer.float() if sample.weight is None else sample.weight for sample in samples]
    return Batch(joined, answer, torch.stack([_pad(weight, (longest,), 0, side) for weight in weights]))


def sent(value: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device, without waiting for it where that is safe.

    CUDA keeps pinned memory until a copy is done. Others may read memory that has been given to something else by then.
    """
    if device.type != "cuda":
        return value.to(device, dtype)
    pinned = value.pin_memory() if value.device.type == "cpu" else value
    return pinned.to(device, dtype, non_blocking=True)


def _pad(value: Tensor, shape: Sequence[int], fill: int, side: Literal["left", "right"] = "right") -> Tensor:
    if tuple(value.shape) == tuple(shape):
        return value
    padded = value.new_full(tuple(shape), fill)
    padded[tuple(slice(-size, None) if side == "left" else slice(size) for size in value.shape)] = value
    return padded


def _encoded(inputs: dict[str, Tensor], weight: Float[Tensor, " token"]) -> Encoded:
    """A sample whose tokens count so much; 0 is no part of the loss."""
    answer = weight > 0
    if not answer.any():
        raise SampleError(NOTHING_LEFT)
    return Encoded(inputs, answer, None if (weight[answer] == 1).all() else weight)


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    def content(part: str | ImageRef) -> dict[str, str]:
        return {"type": "image"} if isinstance(part, ImageRef) else {"type": "text", "text": part}

    return [{"role": turn.role, "content": [content(part) for part in turn.parts]} for turn in turns]


def _replacements(record: Any) -> Sequence[Mapping[str, Any]]:
    """How each image mark of the one text was expanded; some processors turn an empty record into a tensor."""
    return record[0] if record is not None and len(record) and not isinstance(record, Tensor) else []


def _expanded(span: tuple[int, int], replaced: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Where a range of characters lies once the placeholders before it have been expanded."""
    ends = [item["span"][1] for item in replaced]
    gained = [0] + [item["new_span"][1] - item["span"][1] for item in replaced]
    start, end = (char + gained[bisect.bisect_right(ends, char)] for char in span)
    return start, end


def _tokens_in(span: tuple[int, int], offsets: Tensor) -> Bool[Tensor, " token"]:
    """Tokens that hold at least one character of the range; special tokens added without text have none."""
    start, end = span
    return (offsets[:, 0] < end) & (offsets[:, 1] > start) & (offsets[:, 1] > offsets[:, 0])


def _squeezed(text: str) -> str:
    return "".join(text.split())
