"""DEITA: complexity times quality, each read from a language model that writes scores, and a representation.

A scorer writes a score from 1 to 6, and is read by the expected value over the six score tokens; the prompts are those
that the original scorers were trained on.

Source: What Makes Good Data for Alignment? (arXiv:2312.15685), the scorers and the score-first selection.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onesteptrain.data.pool import Sample
from onesteptrain.errors import ConfigError, ModelError
from onesteptrain.methods import Scorer, Setting, check_batch_size, finish_record
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.proxy.encoding import longest
from onesteptrain.proxy.loading import check_folder, first_line
from onesteptrain.proxy.memory import CPU_ROWS
from onesteptrain.storage.score_table import Record
from onesteptrain.utility.answers import represent
from onesteptrain.utility.encoded import records_with

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
class Deita:
    """DEITA (arXiv:2312.15685): complexity of the question times quality of the answer, judged by their texts alone."""

    complexity_scorer: str | None = None
    """Checkpoint folder or hub name of a causal language model that writes how complex a question is, from 1 to 6."""

    quality_scorer: str | None = None
    """Checkpoint folder or hub name of a causal language model that writes how good an answer is, from 1 to 6."""

    scorer_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the scorers' weights."""

    batch_size: int | None = None
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as batch_tokens allows."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)

    def prepare(self, setting: Setting, /) -> Scorer:
        """Load the two scorers beside the proxy.

        Raises:
            ConfigError: a scorer is not named, or there is no proxy.
            ModelError: a scorer cannot be loaded, or does not know the six scores.
        """
        if self.complexity_scorer is None or self.quality_scorer is None:
            raise ConfigError(
                "method 'deita' needs --complexity-scorer and --quality-scorer: causal language models that write a "
                "score from 1 to 6, such as hkust-nlp/deita-complexity-scorer and hkust-nlp/deita-quality-scorer; "
                "experiments/deita_scorers makes small ones for the digits data"
            )
        proxy = setting.need_proxy("deita")
        complexity, quality = (
            load_text_scorer(name, device=proxy.device, dtype=getattr(torch, self.scorer_dtype))
            for name in (self.complexity_scorer, self.quality_scorer)
        )
        return _Deita(proxy, complexity, quality, self.batch_size)


def exchanges(sample: Sample) -> list[tuple[str, str]]:
    """Question and answer of each exchange of a conversation, without system turns and images."""
    spoken = [turn for turn in sample.turns if turn.role != "system"]
    # white space is stripped because an image leaves some behind
    texts = [
        "\n".join(turn.text.strip() for turn in run) for _, run in itertools.groupby(spoken, lambda turn: turn.role)
    ]
    return list(itertools.zip_longest(texts[::2], texts[1::2], fillvalue=""))


@dataclass(frozen=True)
class _Deita:
    proxy: Proxy
    complexity: TextScorer
    quality: TextScorer
    batch_size: int | None

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        return records_with(self.proxy.encoder, samples, self._records)

    def _records(self, encoded: Sequence[Encoded], samples: Sequence[Sample]) -> list[Record]:
        spoken = [exchanges(sample) for sample in samples]
        asked = [[COMPLEXITY_PROMPT.format(question=question) for question, _ in pairs] for pairs in spoken]
        answered = [[QUALITY_PROMPT.format(question=first, answer=then) for first, then in pairs] for pairs in spoken]
        complexity = self.complexity.expected_scores(itertools.chain(*asked), batch_size=self.batch_size or CPU_ROWS)
        quality = self.quality.expected_scores(itertools.chain(*answered), batch_size=self.batch_size or CPU_ROWS)
        vectors = represent(self.proxy, encoded, batch_size=self.batch_size)
        return [
            _record(sample, vector, _look_up(first, complexity), _look_up(second, quality))
            for sample, vector, first, second in zip(encoded, vectors, asked, answered, strict=True)
        ]


def _record(
    sample: Encoded, vector: Float32[Tensor, " dim"] | str, complexity: list[float] | str, quality: list[float] | str
) -> Record:
    """Multiply, and sum over the exchanges, as the original does with the turns of a conversation."""
    if isinstance(complexity, str) or isinstance(quality, str):
        return Record(reason=complexity if isinstance(complexity, str) else str(quality))
    if isinstance(vector, str):
        return Record(reason=vector)
    columns = {"complexity": sum(complexity), "quality": sum(quality), "representation": vector.numpy()}
    return finish_record(sample, sum(map(math.prod, zip(complexity, quality, strict=True))), columns)


def _look_up(prompts: Sequence[str], scores: Mapping[str, float | str]) -> list[float] | str:
    """The scores of some prompts, or the reason why one has none."""
    values = [scores[prompt] for prompt in prompts]
    reason = next((value for value in values if isinstance(value, str)), None)
    return [value for value in values if not isinstance(value, str)] if reason is None else reason


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
        tokens: dict[str, list[int]] = {text: self.tokenizer(text)["input_ids"] for text in dict.fromkeys(prompts)}
        scores: dict[str, float | str] = {
            text: f"{len(ids)} tokens are more than the {self.max_tokens} that the scorer can read; shorten the sample"
            for text, ids in tokens.items()
            if len(ids) > self.max_tokens
        }
        readable = sorted(tokens.keys() - scores.keys(), key=lambda text: (len(tokens[text]), text))
        for start in range(0, len(readable), batch_size):
            group = readable[start : start + batch_size]
            for text, expected in zip(group, self._expected([tokens[text] for text in group]).tolist(), strict=True):
                finite = math.isfinite(expected)
                scores[text] = expected if finite else "a scorer gives no finite score; load it in float32"
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
        probabilities: Tensor = written.double().cpu().softmax(-1)
        return probabilities @ torch.arange(1, len(SCORES) + 1, dtype=torch.float64)


def load_text_scorer(checkpoint: str, *, device: torch.device, dtype: torch.dtype) -> TextScorer:
    """Load a causal language model with its tokenizer, in evaluation mode.

    Raises:
        ModelError: there is no such checkpoint, it is no causal language model, or a score is not one token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_folder(checkpoint)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"scorer {checkpoint!r} cannot be loaded: {first_line(error)}; give a causal language model with its "
            "tokenizer, as a folder made by save_pretrained or a hub name"
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
