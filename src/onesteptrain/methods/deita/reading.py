"""Language models that write a score from 1 to 6, read by the expected value over the six score tokens.

Source: DEITA (arXiv:2312.15685), the complexity and quality scorers; the prompts are those that they were trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onesteptrain.errors import ModelError
from onesteptrain.proxy.acceleration.positions import longest

COMPLEXITY_PROMPT = (
    "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
    "##Query: {question}  \n##Complexity: "
)

QUALITY_PROMPT = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n"
    " #Question#:\n{question}\n#Response#:\n{answer} \n##Quality: "
)

SCORES = ("1", "2", "3", "4", "5", "6")


@dataclass(frozen=True)
class TextScorer:
    """A causal language model whose next token after a prompt is a score."""

    model: Any
    tokenizer: Any
    score_ids: tuple[int, ...]
    """Tokens of the six scores, in rising order."""

    max_tokens: int
    """A longer prompt has a reason in place of a score: cutting it would change what is scored."""

    def expected_scores(self, prompts: Iterable[str], *, batch_size: int) -> dict[str, float | str]:
        """The expected score after each prompt, between 1 and 6, or the reason why there is none.

        The probabilities are those of the six score tokens alone; all other tokens are left out before the softmax.

        Args:
            prompts: What the model reads; one that comes again is read once.
            batch_size: Prompts in one pass.
        """
        tokens: dict[str, list[int]] = {one: self.tokenizer(one)["input_ids"] for one in dict.fromkeys(prompts)}
        scores: dict[str, float | str] = {
            one: f"{len(ids)} tokens are more than the {self.max_tokens} that the scorer can read; shorten the sample"
            for one, ids in tokens.items()
            if len(ids) > self.max_tokens
        }
        readable = sorted((one for one in tokens if one not in scores), key=lambda one: (len(tokens[one]), one))
        for start in range(0, len(readable), batch_size):
            group = readable[start : start + batch_size]
            for prompt, expected in zip(group, self._expected([tokens[one] for one in group]).tolist(), strict=True):
                finite = torch.isfinite(torch.tensor(expected))
                scores[prompt] = expected if finite else "a scorer gives no finite score; load it in float32"
        return scores

    @torch.no_grad()
    def _expected(self, prompts: Sequence[Sequence[int]]) -> Float64[Tensor, " prompt"]:
        device = next(iter(self.model.parameters())).device
        last = [len(ids) - 1 for ids in prompts]
        kept = sorted(set(last))
        # padding on the right leaves the positions of a causal model alone
        ids = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True).to(device)
        mask = (torch.arange(ids.shape[1]) <= torch.tensor(last)[:, None]).long().to(device)
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            logits = self.model(**arguments, use_cache=False, logits_to_keep=torch.tensor(kept, device=device)).logits
        else:
            logits = self.model(**arguments).logits[:, kept]
        written = logits[range(len(prompts)), [kept.index(place) for place in last]][:, list(self.score_ids)]
        shares: Tensor = written.double().cpu().softmax(-1)
        return shares @ torch.arange(1, len(SCORES) + 1, dtype=torch.float64)


def load_text_scorer(checkpoint: str, *, device: torch.device, dtype: torch.dtype) -> TextScorer:
    """Load a causal language model with its tokenizer, in evaluation mode.

    Raises:
        ModelError: there is no such checkpoint, it is no causal language model, or a score is not one token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_folder(checkpoint)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        first = next(
            (line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise ModelError(
            f"scorer {checkpoint!r} cannot be loaded: {first}; give a causal language model with its tokenizer, as a "
            "folder made by save_pretrained or a hub name"
        ) from error
    ids = _score_ids(checkpoint, tokenizer)
    return TextScorer(model.to(device).eval(), tokenizer, ids, longest(model))


def _score_ids(checkpoint: str, tokenizer: Any) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    missing = [score for score in SCORES if score not in vocabulary]
    if missing:
        raise ModelError(
            f"scorer {checkpoint!r} has no token for the score {', '.join(missing)}; each of 1 to 6 must be one token: "
            "give a scorer that was trained to write them"
        )
    return tuple(int(vocabulary[score]) for score in SCORES)


def _check_folder(checkpoint: str) -> None:
    """A path that looks local must be a checkpoint folder; else the hub would be asked for a path."""
    path = Path(checkpoint)
    local = path.exists() or checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1
    if local and not (path / "config.json").is_file():
        what = "has no config.json" if path.exists() else "does not exist"
        raise ModelError(f"scorer folder {checkpoint!r} {what}; give a folder made by save_pretrained or a hub name")
