"""Ask an endpoint: many requests at a time, each tried again after a while, each reply kept as it arrives.

What is tried again, and how long it waits, is the business of the `openai` package: connections that break or time out
and the statuses 408, 409, 429 and 5xx, with exponential back-off or as long as the endpoint asks for in Retry-After.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from onesteptrain.errors import ConfigError, MissingExtraError, OneStepError, ScoreError
from onesteptrain.methods.judge.prompts import blank_url, encodable, image_part
from onesteptrain.methods.judge.replies import Replies, Reply, request_key
from onesteptrain.storage.secrets import keys_of, without_keys

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

T = TypeVar("T")

Request = Mapping[str, Any]
"""The body of a chat completion."""

_LONGEST_DETAIL = 200
"""Characters of an endpoint's own words that go into a line of ours."""


class _NoCompletionError(Exception):
    """An endpoint said yes, and then something that is no chat completion."""


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and how."""

    url: str
    api_key: str | None
    api_key_env: str
    """Name of the environment variable that the key comes from, for error messages."""

    concurrency: int
    """Most requests under way at a time."""

    retries: int
    timeout: float
    """Longest wait for one reply, in seconds."""

    @property
    def base_url(self) -> str:
        """The URL without its query."""
        return urlunsplit(urlsplit(self.url)._replace(query="", fragment=""))

    @property
    def query(self) -> dict[str, object]:
        """The URL's query, which goes with each request."""
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))

    def shown(self, text: str) -> str:
        """A text without the keys of this endpoint, which servers echo."""
        return without_keys(text, [*keys_of(self.url), *([self.api_key] if self.api_key else [])])


def check_installed() -> None:
    """Refuse to start without the client.

    Raises:
        MissingExtraError: openai is not installed.
    """
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('the judge needs openai: pip install "onesteptrain[judge]"') from error


def answer_all(requests: Sequence[Request], endpoint: Endpoint, store: Path) -> list[Reply | str]:
    """The reply to each request, from the store where it is there; or why there is none.

    May be called from any thread, and while an event loop runs in it.

    Raises:
        ConfigError: the endpoint cannot be reached, or refuses the key or the model.
        ScoreError: the endpoint takes no requests any more.
    """
    by_key = {request_key(request): request for request in requests}
    answers = _run(_Asking(endpoint, store).answers(by_key))
    return [answers[request_key(request)] for request in requests]


class _Asking:
    """One round of requests."""

    def __init__(self, endpoint: Endpoint, store: Path) -> None:
        self.endpoint = endpoint
        self.store = store
        self.refused: OneStepError | None = None
        """Why no further request makes sense; those under way still finish, since they are paid for."""

    async def answers(self, requests: Mapping[str, Request]) -> dict[str, Reply | str]:
        with Replies(self.store) as replies:
            known: dict[str, Reply | str] = {key: reply for key in requests if (reply := replies.get(key)) is not None}
            missing = {key: request for key, request in requests.items() if key not in known}
            return known | (await self._ask_all(missing, replies) if missing else {})

    async def _ask_all(self, requests: Mapping[str, Request], replies: Replies) -> dict[str, Reply | str]:
        from openai import AsyncOpenAI

        free = asyncio.Semaphore(self.endpoint.concurrency)
        async with AsyncOpenAI(
            base_url=self.endpoint.base_url,
            default_query=self.endpoint.query,
            api_key=self.endpoint.api_key or "none",  # servers of one's own ask for none, the client does
            max_retries=self.endpoint.retries,
            timeout=self.endpoint.timeout,
        ) as client:

            async def ask(key: str, request: Request) -> Reply | str:
                async with free:
                    if self.refused is not None:
                        return "not asked"
                    reply = await self._ask(client, request)
                return reply if isinstance(reply, str) else replies.keep(key, str(request["model"]), reply)

            answers = await asyncio.gather(*(ask(key, request) for key, request in requests.items()))
        if self.refused is not None:
            raise self.refused
        return dict(zip(requests, answers, strict=True))

    async def _ask(self, client: AsyncOpenAI, request: Request) -> Reply | str:
        """A reply, or why this request failed; notes if the fault is the endpoint's and not the request's."""
        from openai import APIError

        started = time.monotonic()
        try:
            completion = await _complete(client, request)
        except (APIError, _NoCompletionError) as error:
            await self._find_fault(client, request)
            return f"the judge did not answer: {self._detail(error)}"
        choice, usage = completion.choices[0], completion.usage
        return Reply(
            text=self.endpoint.shown(encodable(_text(choice.message.content))),
            finished=choice.finish_reason != "length",
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            seconds=time.monotonic() - started,
        )

    async def _find_fault(self, client: AsyncOpenAI, request: Request) -> None:
        """After a request has failed: no further one is sent if a harmless request of the same kind fails too."""
        from openai import APIConnectionError, APIError, APITimeoutError

        once = client.with_options(max_retries=0)
        try:
            try:
                await _complete(once, _harmless(request))
            except APIConnectionError as error:
                if isinstance(error, APITimeoutError):
                    raise
                # again: a server may just have closed the connection that an earlier request has left open
                await _complete(once, _harmless(request))
        except (APIError, _NoCompletionError) as error:
            self.refused = self._as_our_error(error, str(request["model"]))

    def _as_our_error(self, error: Exception, model: str) -> OneStepError:
        import openai

        where, detail = f"endpoint {self.endpoint.shown(self.endpoint.url)}", self._detail(error)
        if isinstance(error, openai.APITimeoutError):
            return ConfigError(
                f"{where} gave no answer in {self.endpoint.timeout:g} s; give a longer --timeout or less --concurrency"
            )
        if isinstance(error, openai.APIConnectionError):
            return ConfigError(f"{where} cannot be reached ({detail}); start the server, or give another --endpoint")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            given = "the key in" if self.endpoint.api_key else "the request without key; there is none in"
            return ConfigError(
                f"{where} refuses {given} the environment variable {self.endpoint.api_key_env} ({detail}); "
                "set it to a valid key"
            )
        if isinstance(error, openai.NotFoundError):
            return ConfigError(
                f"{where} does not know model {model!r} or takes no chat completions ({detail}); "
                "give --model as the endpoint calls it, and its base URL as --endpoint, which often ends in /v1"
            )
        return ScoreError(
            f"{where} refuses even a plain request to model {model!r} ({detail}); "
            "mend that and give the command again: all replies so far are kept"
        )

    def _detail(self, error: Exception) -> str:
        """The endpoint's own words, on one line and without keys."""
        cause = f": {error.__cause__}" if error.__cause__ is not None and str(error.__cause__) else ""
        words = self.endpoint.shown(" ".join(f"{error}{cause}".split()))
        return words if len(words) <= _LONGEST_DETAIL else words[:_LONGEST_DETAIL] + "..."


async def _complete(client: AsyncOpenAI, request: Request) -> ChatCompletion:
    """One chat completion with at least one choice, or an error of the client's."""
    from openai.types.chat import ChatCompletion

    completion = await client.chat.completions.create(**request)
    if not isinstance(completion, ChatCompletion) or not completion.choices:  # another page, or an error in disguise
        raise _NoCompletionError(f"no chat completion but {str(completion)!r}")
    return completion


def _harmless(request: Request) -> dict[str, Any]:
    """A request like another one, with a greeting for its messages, and a grey square where that had images."""
    parts = [part for message in request["messages"] for part in message["content"] if isinstance(part, dict)]
    images = [image_part(blank_url())] if any(part["type"] == "image_url" for part in parts) else []
    content = [*images, {"type": "text", "text": "Hello"}]
    return {**request, "messages": [{"role": "user", "content": content}]}


def _text(content: object) -> str:
    """The text of a reply; of a list of parts those that hold text, thoughts left out."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else _field(part, "text") for part in parts if part is not None]
    return "".join(text for text in texts if isinstance(text, str))


def _field(part: object, name: str) -> object:
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in a thread of its own where this one has an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
