"""LLM-as-a-Judge by rejection sampling, against any OpenAI-compatible endpoint that takes images.

Requests for each sample (prompts), asked many at a time (asking), each reply kept (replies) and counted as a vote.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from onesteptrain.data.pool import Sample
from onesteptrain.errors import ConfigError, SampleError, printable
from onesteptrain.evaluation.answers import extract_answer, is_correct
from onesteptrain.methods import INCIDENTAL, Scorer, Setting
from onesteptrain.methods.judge.asking import Endpoint, answer_all, check_installed
from onesteptrain.methods.judge.prompts import (
    CRITERIA,
    HIGHEST,
    LOWEST,
    own_answer,
    question_prompt,
    read_verdict,
    rubric_prompt,
    scaled,
)
from onesteptrain.methods.judge.replies import Replies, Reply, default_path
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.storage.secrets import without_keys

_MAX_VOTES = 1000
"""So that no two seeds of a run share a vote's seed."""

_SHOWN = 120
"""Characters of a reply's last line that a reason quotes."""

_LIMITS = {
    "votes": (1, _MAX_VOTES),
    "pass_mark": (LOWEST, HIGHEST),
    **dict.fromkeys(("max_new_tokens", "max_image_side", "concurrency"), (1, math.inf)),
    **dict.fromkeys(("retries", "temperature", "prompt_price", "completion_price"), (0, math.inf)),
}
"""Lowest and highest value of each option that is a number."""


@dataclass(frozen=True)
class Judge:
    """LLM-as-a-Judge: a large model grades each sample, or answers its question; for rejection sampling."""

    uses_proxy: ClassVar[bool] = False

    model: str = ""
    """The judge, as the endpoint calls it. Has to be given."""

    endpoint: str = field(default="http://localhost:8000/v1", metadata=INCIDENTAL)
    """Base URL of an OpenAI-compatible server: vLLM, SGLang, transformers serve, or a paid one."""

    mode: Literal["rubric", "agreement"] = "rubric"
    """rubric shows the judge the whole sample and asks for grades; agreement has it answer the question without
    the sample's answer, and compares the two."""

    votes: int = 1
    """Replies a sample, each with a seed of its own."""

    temperature: float = 0.0
    """How freely the judge draws its words; several votes need more than 0."""

    pass_mark: int = 4
    """Lowest grade, from 1 to 5, that every criterion must reach for a vote to accept; mode rubric."""

    answer_request: str = "End your reply with one line: The answer is X."
    """Put behind the question; empty for a model that states its answer by itself; mode agreement."""

    max_new_tokens: int = 1024
    """Longest reply."""

    max_image_side: int = 2048
    """Longest side of an image, in pixels; larger ones are sent scaled down."""

    concurrency: int = field(default=8, metadata=INCIDENTAL)
    """Most requests under way at a time."""

    retries: int = field(default=5, metadata=INCIDENTAL)
    """How often a request that failed is tried again: after 0.5 s, 1 s, 2 s, at most 8 s, or as the endpoint asks."""

    timeout: float = field(default=120.0, metadata=INCIDENTAL)
    """Longest wait for one reply, in seconds."""

    replies: Path | None = field(default=None, metadata=INCIDENTAL)
    """File that keeps all replies, so that none is paid for twice; by default in the user's cache folder."""

    prompt_price: float = field(default=0.0, metadata=INCIDENTAL)
    """Price of a million prompt tokens."""

    completion_price: float = field(default=0.0, metadata=INCIDENTAL)
    """Price of a million tokens of the replies."""

    api_key_env: str = field(default="JUDGE_API_KEY", metadata=INCIDENTAL)
    """Name of the environment variable that holds the key."""

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not (least <= value <= most and value < math.inf):
                upper = "" if most == math.inf else f" and at most {most}"
                raise ConfigError(f"{name} is {value}; it must be finite, at least {least}{upper}")
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"timeout is {self.timeout}; it must be a positive number of seconds")
        if self.votes > 1 and self.temperature == 0:
            raise ConfigError(
                f"{self.votes} votes at temperature 0 are one vote; give --temperature above 0, such as 0.7"
            )

    def prepare(self, setting: Setting, /) -> Scorer:
        """Check what can be checked without a request; proxy and anchors are not used.

        Raises:
            ConfigError: there is no model, the endpoint is no URL, or the store of replies cannot be opened.
            MissingExtraError: openai is not installed.
        """
        if not self.model:
            raise ConfigError("method 'judge' needs a model and got none; give --model as the endpoint calls it")
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"endpoint is {without_keys(self.endpoint)!r}; it must be a URL such as http://localhost:8000/v1"
            )
        check_installed()
        store = self.replies or default_path()
        Replies(store).close()
        key = os.environ.get(self.api_key_env) or None
        endpoint = Endpoint(self.endpoint, key, self.api_key_env, self.concurrency, self.retries, self.timeout)
        return _Judging(self, endpoint, store, setting.seed)


class _Asked(NamedTuple):
    """What is asked about one sample, and how its replies are read."""

    messages: list[dict[str, Any]]
    key: str
    """The code of the verdict in mode rubric, the sample's own answer in mode agreement."""


class _Vote(NamedTuple):
    score: float
    accepts: bool
    grades: tuple[int, ...]
    """By criterion; none in mode agreement."""


@dataclass(frozen=True)
class _Judging:
    options: Judge
    endpoint: Endpoint
    store: Path
    seed: int

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        asked = [self._asked(sample) for sample in samples]
        requests = [self._requests(question) if isinstance(question, _Asked) else [] for question in asked]
        replies = iter(answer_all(list(itertools.chain(*requests)), self.endpoint, self.store))
        return [
            self._record(question, [next(replies) for _ in votes]) if isinstance(question, _Asked) else question
            for question, votes in zip(asked, requests, strict=True)
        ]

    def _asked(self, sample: Sample) -> _Asked | Record:
        """What to ask; or the record of a sample about which nothing needs to be, or can be, asked."""
        side = self.options.max_image_side
        try:
            if self.options.mode == "rubric":
                return _Asked(*rubric_prompt(sample, max_side=side))
            messages = question_prompt(sample, answer_request=self.options.answer_request, max_side=side)
            answer = own_answer(sample)
        except SampleError as error:
            return Record(reason=str(error))
        if answer is None:
            return Record(0.0, columns={"accepted": 0.0, "votes": 0, "outcome": "no answer", **self._cost([])})
        return _Asked(messages, answer)

    def _requests(self, asked: _Asked) -> list[dict[str, Any]]:
        """One request a vote; at temperature 0 there is nothing to draw, and no seed."""
        common = {
            "model": self.options.model,
            "messages": asked.messages,
            "max_completion_tokens": self.options.max_new_tokens,
            "temperature": self.options.temperature,
        }
        if not self.options.temperature:
            return [common]
        return [{**common, "seed": self.seed * _MAX_VOTES + vote} for vote in range(self.options.votes)]

    def _record(self, asked: _Asked, replies: Sequence[Reply | str]) -> Record:
        failed = next((reply for reply in replies if isinstance(reply, str)), None)
        arrived = [reply for reply in replies if isinstance(reply, Reply)]
        votes = [vote for reply in arrived if (vote := self._vote(asked, reply)) is not None]
        if failed is not None:
            return Record(reason=failed, columns=self._cost(arrived))
        if not votes:
            return Record(reason=self._unreadable(arrived), columns=self._cost(arrived))
        accepted = sum(vote.accepts for vote in votes) / len(votes)
        outcome = "accepted" if accepted >= 0.5 else "rejected"
        columns: dict[str, Value] = {"accepted": accepted, "votes": len(votes), "outcome": outcome}
        for place, name in enumerate(CRITERIA if self.options.mode == "rubric" else ()):
            columns[f"grade.{name}"] = sum(vote.grades[place] for vote in votes) / len(votes)
        score = sum(vote.score for vote in votes) / len(votes)
        return Record(score, columns={**columns, **self._cost(arrived)})

    def _vote(self, asked: _Asked, reply: Reply) -> _Vote | None:
        """What a reply says; nothing where it cannot be read."""
        if self.options.mode == "rubric":
            grades = read_verdict(reply.text, asked.key, finished=reply.finished)
            return None if grades is None else _Vote(scaled(grades), min(grades) >= self.options.pass_mark, grades)
        if extract_answer(reply.text, finished=reply.finished) is None:
            return None
        agrees = is_correct(reply.text, asked.key, finished=reply.finished)
        return _Vote(float(agrees), agrees, ())

    def _unreadable(self, replies: Sequence[Reply]) -> str:
        wanted = "verdict" if self.options.mode == "rubric" else "final answer"
        cut = sum(not reply.finished for reply in replies)
        more = f", {cut} cut off at --max-new-tokens {self.options.max_new_tokens}" if cut else ""
        lines = printable(replies[-1].text).strip().splitlines() if replies else []
        last = f"; its last line: {lines[-1][-_SHOWN:]!r}" if lines else "; it was empty"
        return f"no {wanted} can be read in the judge's reply ({len(replies)} asked{more}){last}"

    def _cost(self, replies: Sequence[Reply]) -> dict[str, Value]:
        """What the replies took when they were asked for, whether now or in an earlier run."""
        prompt = _total([reply.prompt_tokens for reply in replies])
        completion = _total([reply.completion_tokens for reply in replies])
        cost = None
        if prompt is not None and completion is not None:
            cost = (prompt * self.options.prompt_price + completion * self.options.completion_price) / 1e6
        return {
            "requests": len(replies),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "cost": cost,
            "judge_seconds": math.fsum(reply.seconds for reply in replies),
        }


def _total(counts: Sequence[int | None]) -> int | None:
    """The sum; nothing where a count is missing."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
