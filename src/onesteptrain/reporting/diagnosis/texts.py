"""What a pool says of its rows: the form of their answers, their other columns, and the text of some spans.

Answer tokens become characters of the answer through the tokenizer of the run's proxy; no image is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onesteptrain.data.pool import Sample, Turn, Unreadable, text_of
from onesteptrain.data.score_record import read_score_record
from onesteptrain.errors import ModelError, PoolError, SampleError
from onesteptrain.evaluation.answers import extract_answer
from onesteptrain.reporting.diagnosis.bias import Column
from onesteptrain.reporting.diagnosis.spans import TokenSpan
from onesteptrain.storage.score_table import ScoreTable

_CHOICE = re.compile(r"\(?[A-Z]\)?\.?")
_QUESTION, _AROUND = 300, 60
"""Characters of the question, and of the answer on each side of a quotation."""

Quoter = Callable[[Sample], Sequence["Place"]]
"""Gives the place of each answer token of a sample, the end-of-turn tokens included.

Raises SampleError where the answer cannot be found.
"""


class Place(NamedTuple):
    """Characters of the answer: the first, and the one after the last; equal where a token stands for none."""

    start: int
    end: int


class Quote(NamedTuple):
    """A part of an answer, with what it stands in; no text where it cannot be found, or at the end of the answer."""

    start: int | None = None
    """Characters of the answer: the first, and the one after the last."""

    end: int | None = None
    text: str | None = None
    question: str = ""
    """The beginning of what was asked before."""

    before: str = ""
    """Of the answer, as is the next."""

    after: str = ""


class Read(NamedTuple):
    """What a pool says of its rows."""

    forms: Sequence[str | None]
    """None for a row that cannot be read."""

    columns: Mapping[str, Column]
    """Numbers where all values are numbers."""

    quotes: Mapping[int, Quote]
    """Of the rows asked for."""


def read_pool(
    rows: Iterable[Sample | Unreadable], uids: Sequence[str], spans: Mapping[int, TokenSpan], quote: Quoter
) -> Read:
    """Read a pool once.

    Args:
        rows: The pool.
        uids: Of the rows that were scored, in order.
        spans: Answer tokens to quote, by row.
        quote: Finds answer tokens in a text.

    Raises:
        PoolError: these are not the rows that were scored.
    """
    forms: list[str | None] = []
    fields: dict[str, dict[int, object]] = {}
    quotes: dict[int, Quote] = {}
    for row, sample in enumerate(rows):
        if row >= len(uids) or sample.uid != uids[row]:
            raise PoolError(f"row {row} of the pool is not the one that was scored; put that pool back, or score again")
        forms.append(None if isinstance(sample, Unreadable) else answer_form(text_of(sample, "assistant")))
        for name, value in () if isinstance(sample, Unreadable) else sample.fields.items():
            if isinstance(value, (str, int, float)):
                fields.setdefault(name, {})[row] = value
        if row in spans and isinstance(sample, Sample):
            quotes[row] = quoted(sample, spans[row], quote)
    return Read(forms, {name: _column(values, len(uids)) for name, values in fields.items()}, quotes)


def quoted(sample: Sample, span: TokenSpan, quote: Quoter) -> Quote:
    """The text of some answer tokens of a sample."""
    question = text_of(sample, "user").strip()[:_QUESTION]
    try:
        places = quote(sample)
    except SampleError:
        return Quote(question=question)
    if span.end > len(places):
        return Quote(question=question)
    answer = text_of(sample, "assistant")
    start, end = places[span.start].start, places[span.end - 1].end
    text = answer[start:end]
    start += len(text) - len(text.lstrip()) if text.strip() else 0  # many tokens begin with a space
    before, after = answer[max(0, start - _AROUND) : start], answer[end : end + _AROUND]
    return Quote(start, end, answer[start:end], question, before, after)


def answer_form(text: str) -> str:
    """The form of an answer, such as "stated number", "boxed choice" or "unstated text".

    Stated is what `extract_answer` finds in a text that could go on: "the answer is 7.", `#### 7`, <answer>7</answer>.
    """
    stated = extract_answer(f"{text.rstrip()}\n...", finished=False)
    how = "unstated" if stated is None else "boxed" if "\\boxed" in text else "stated"
    return f"{how} {_kind(stated if stated is not None else extract_answer(text))}"


def _kind(answer: str | None) -> str:
    if answer is None:
        return "text"
    if _CHOICE.fullmatch(answer.strip()):
        return "choice"
    return "number" if re.search(r"\d", answer) else "text"


def load_quoter(proxy: str | Path, *, trust_remote_code: bool = False) -> Quoter:
    """Read the tokenizer and chat template of a checkpoint, or of a warm-up's folder, without the weights.

    Raises:
        ModelError: the checkpoint is not there any more.
    """
    from transformers import AutoProcessor

    checkpoint = Path(proxy) / "model" if (Path(proxy) / "model").is_dir() else proxy
    try:
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            checkpoint, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"the proxy {str(proxy)!r} that scored this run cannot be read; put it back") from error
    return lambda sample: token_places(processor, sample.turns)


def recorded_quoter(table: ScoreTable) -> Quoter:
    """Through the tokenizer of the proxy that scored a table."""
    asked = read_score_record(table.path.parent).asked
    return load_quoter(asked["proxy"], trust_remote_code=asked["loading"]["trust_remote_code"])


def token_places(processor: Any, turns: Sequence[Turn]) -> list[Place]:
    """Where each answer token in the loss of a conversation stands in the answer; no image is read.

    Raises:
        SampleError: the chat template rewrites the answer.
    """
    from onesteptrain.proxy.encoding import answer_spans, answers_of, unlearned_spans

    def render(messages: list[dict[str, Any]], generation_prompt: bool) -> str:
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt))

    text, spans = answer_spans(render, turns)
    tokenizer = processor.tokenizer
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not has_bos)["offset_mapping"]
    out = unlearned_spans(text, spans, turns)
    offsets = [token for token in offsets if not any(token[0] < end and token[1] > start for start, end in out)]
    places: list[Place] = []
    before = 0
    for turn, span in zip(answers_of(turns), spans, strict=True):
        places += _places(turn.text, before, text, span, offsets) if turn.weight else []
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


def _column(values: Mapping[int, object], rows: int) -> Column:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values()):
        numbers = np.full(rows, np.nan)
        numbers[list(values)] = list(values.values())
        return numbers
    return [values.get(row) for row in range(rows)]
