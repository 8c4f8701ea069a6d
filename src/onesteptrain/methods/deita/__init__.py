"""DEITA: complexity times quality, each read from a language model that writes scores, and a representation.

Source: What Makes Good Data for Alignment? (arXiv:2312.15685), the scorers and the score-first selection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from onesteptrain.data.pool import Sample
from onesteptrain.errors import ConfigError
from onesteptrain.methods import Scorer, Setting, check_batch_size
from onesteptrain.methods.deita.reading import COMPLEXITY_PROMPT, QUALITY_PROMPT, TextScorer, load_text_scorer
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.proxy.model import CPU_ROWS
from onesteptrain.storage.score_table import Record
from onesteptrain.utility.encoded import records_with
from onesteptrain.utility.representing import represent

__all__ = ["COMPLEXITY_PROMPT", "QUALITY_PROMPT", "Deita", "TextScorer", "exchanges", "load_text_scorer", "represent"]


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
    """Samples in one pass; by default 16 on a CPU, and elsewhere as many as --batch-tokens allows."""

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
                "experiments/deita_scorers makes small ones for the digits world"
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
        answered = [[QUALITY_PROMPT.format(question=one, answer=two) for one, two in pairs] for pairs in spoken]
        complexity = self.complexity.expected_scores(itertools.chain(*asked), batch_size=self.batch_size or CPU_ROWS)
        quality = self.quality.expected_scores(itertools.chain(*answered), batch_size=self.batch_size or CPU_ROWS)
        vectors = represent(self.proxy, encoded, batch_size=self.batch_size)
        return [
            _record(one, vector, _look_up(first, complexity), _look_up(second, quality))
            for one, vector, first, second in zip(encoded, vectors, asked, answered, strict=True)
        ]


def _record(
    sample: Encoded, vector: Float32[Tensor, " dim"] | str, complexity: list[float] | str, quality: list[float] | str
) -> Record:
    """Multiply, and sum over the exchanges, as the original does with the turns of a conversation."""
    if isinstance(complexity, str) or isinstance(quality, str):
        return Record(reason=complexity if isinstance(complexity, str) else str(quality))
    if isinstance(vector, str):
        return Record(reason=vector)
    columns: dict[str, Any] = {
        "complexity": sum(complexity),
        "quality": sum(quality),
        "representation": vector.numpy(),
        "answer_tokens": int(sample.answer.sum()),
        "tokens": sample.tokens,
    }
    return Record(sum(map(math.prod, zip(complexity, quality, strict=True))), columns=columns)


def _look_up(prompts: Sequence[str], scores: Mapping[str, float | str]) -> list[float] | str:
    """The scores of some prompts, or the reason why one has none."""
    found: list[float] = []
    for prompt in prompts:
        score = scores[prompt]
        if isinstance(score, str):
            return score
        found.append(score)
    return found
