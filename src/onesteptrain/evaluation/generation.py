"""Let a model answer many prompts greedily, in batches padded on the left, and keep the replies as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onesteptrain.data.pool import Turn
from onesteptrain.errors import SampleError
from onesteptrain.proxy import Encoded, Proxy, in_batches
from onesteptrain.proxy.encoding import collate

_MARK = "answer text"
_WINDOW = 16
"""Batches whose prompts are prepared together."""


class Reply(NamedTuple):
    """What the model said."""

    text: str
    finished: bool
    """It ended by itself; otherwise the limit of new tokens cut it off."""


@dataclass(frozen=True)
class Journal:
    """A JSONL file with one line a reply; a line that a kill has cut off does not count."""

    path: Path

    def replies(self) -> dict[int, Reply | str]:
        """What is there, by the question's position: a reply, or the reason why there is none."""
        if not self.path.exists():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        rows = [json.loads(line) for line in whole.splitlines()]
        return {
            row["question"]: row["reason"] if row["reason"] is not None else Reply(row["text"], row["finished"])
            for row in rows
        }

    def add(self, replies: Mapping[int, Reply | str]) -> None:
        """Append some replies, and see that they have left this process."""
        lines = [json.dumps(_row(place, reply)) + "\n" for place, reply in replies.items()]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))


def generate(
    proxy: Proxy,
    conversations: Sequence[Sequence[Turn]],
    *,
    max_new_tokens: int,
    batch_size: int,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Reply | str]:
    """The next assistant turn of each conversation, or the reason why there is none, in the order given.

    Args:
        proxy: The model.
        conversations: What it answers, each up to the answer.
        max_new_tokens: Longest reply.
        batch_size: Conversations in one pass.
        journal: Replies from an earlier call, which those of each batch are added to as soon as they are there; a batch
            is skipped when all of it is known, so that the batches, and with them the replies, are those of a call
            without interruption.
        progress: Told the replies that are there and the conversations in all.
    """
    replies = journal.replies() if journal is not None else {}
    window = _WINDOW * batch_size  # sorted by length inside, so that little is padded; only its images are in memory
    for start in range(0, len(conversations), window):
        places = range(start, min(start + window, len(conversations)))
        if all(place in replies for place in places):
            continue
        prompts = [_prompt(proxy, conversations[place]) for place in places]
        for batch in _answered(proxy, prompts, max_new_tokens, batch_size, {place - start for place in replies}):
            new = {start + place: reply for place, reply in batch.items()}
            replies.update(new)
            if journal is not None:
                journal.add(new)
            if progress is not None:
                progress(len(replies), len(conversations))
    return [replies[place] for place in range(len(conversations))]


def end_tokens(proxy: Proxy) -> list[int]:
    """Tokens that end a turn: what the chat template writes after an answer, and what the checkpoint names."""
    tokenizer = proxy.encoder.processor.tokenizer
    named = [tokenizer.eos_token_id, getattr(proxy.model.generation_config, "eos_token_id", None)]
    ends = [token for entry in named for token in (entry if isinstance(entry, list) else [entry]) if token is not None]
    turns = [("user", "question"), ("assistant", _MARK)]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    rendered = str(proxy.encoder.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    after = tokenizer(rendered.rpartition(_MARK)[2].lstrip(), add_special_tokens=False)["input_ids"]
    if after and after[0] in tokenizer.added_tokens_decoder:
        ends.insert(0, after[0])
    return list(dict.fromkeys(ends))


def _answered(
    proxy: Proxy, prompts: Sequence[Encoded | str], max_new_tokens: int, batch_size: int, known: set[int]
) -> Iterator[dict[int, Reply | str]]:
    """The replies of each batch that is not known as a whole, by position; first the prompts that have a reason."""
    refused = {place: prompt for place, prompt in enumerate(prompts) if isinstance(prompt, str)}
    if not refused.keys() <= known:
        yield dict(refused)
    usable = [(place, prompt) for place, prompt in enumerate(prompts) if isinstance(prompt, Encoded)]
    for indices in in_batches([prompt for _, prompt in usable], batch_size):
        batch = [usable[index] for index in indices]
        if any(place not in known for place, _ in batch):
            replies = _generate(proxy, [prompt for _, prompt in batch], max_new_tokens)
            yield dict(zip((place for place, _ in batch), replies, strict=True))


def _prompt(proxy: Proxy, turns: Sequence[Turn]) -> Encoded | str:
    try:
        inputs = proxy.encoder.prompt(turns)
    except SampleError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  a processor may refuse a prompt in any way; the reason is kept
        return f"the processor refused this question ({type(error).__name__}: {error})"
    inputs.pop("text_replacement_offsets", None)  # a tensor for some processors, and no input of the model
    return Encoded(inputs, torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool))


@torch.inference_mode()
def _generate(proxy: Proxy, prompts: Sequence[Encoded], max_new_tokens: int) -> list[Reply]:
    from transformers import GenerationConfig

    tokenizer = proxy.encoder.processor.tokenizer
    ends = end_tokens(proxy)
    pixel_type = next(iter(proxy.model.parameters())).dtype
    batch = collate(prompts, pad_token_id=tokenizer.pad_token_id, side="left").to(proxy.device, pixel_type)
    config = GenerationConfig(  # type: ignore[no-untyped-call]  # in place of the checkpoint's own, which may sample
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    written = proxy.model.generate(**batch.inputs, generation_config=config)
    return [_reply(row, ends, tokenizer) for row in written[:, batch.answer.shape[1] :].tolist()]


def _reply(tokens: list[int], ends: Sequence[int], tokenizer: Any) -> Reply:
    stop = next((place for place, token in enumerate(tokens) if token in ends), None)
    return Reply(tokenizer.decode(tokens[:stop], skip_special_tokens=True).strip(), stop is not None)


def _row(place: int, reply: Reply | str) -> dict[str, object]:
    if isinstance(reply, str):
        return {"question": place, "text": None, "finished": False, "reason": reply}
    return {"question": place, "text": reply.text, "finished": reply.finished, "reason": None}
