"""Keys that stand in URLs: found, so that no file, log or terminal shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN = "***"
_SHORTEST = 4
"""Characters; shorter ones stand in too many words by chance."""

_NAMES = (
    r"[\w.-]*(?:key|token|secret|passw(?:or)?d|pwd|signature|credential)[\w.-]*"
    r"|pass|auth|authorization|code|sig|sas|jwt"
)
_USER = re.compile(r"(?<=://)[^/\s?#@]+(?:@[^/\s?#@]*)*(?=@)")
_PARAMETER = re.compile(rf"([?&;#](?:{_NAMES})=)[^&;#\s'\"]+", re.IGNORECASE)
_NAMED = re.compile(_NAMES, re.IGNORECASE)


def without_keys(text: str, keys: Iterable[str] = ()) -> str:
    """A text with `***` in place of the users, passwords and named keys of its URLs, and of known keys."""
    text = _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, text))
    known = {form for key in keys for form in (key, quote(key, safe=""))}
    for key in sorted(known, key=len, reverse=True):
        text = text.replace(key, HIDDEN) if len(key) >= _SHORTEST else text
    return text


def keys_of(url: str) -> tuple[str, ...]:
    """What is secret in a URL, as it stands there and as it is meant."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    found = [part for part in user.split(":", 1) if part]
    found += [value for name, value in parse_qsl(parts.query) if _NAMED.fullmatch(name)]
    return tuple(dict.fromkeys(form for value in found for form in (value, unquote(value))))


def kept_secret(value: Any) -> Any:
    """Plain values without the keys of their URLs."""
    if isinstance(value, dict):
        return {name: kept_secret(item) for name, item in value.items()}
    if isinstance(value, list):
        return [kept_secret(item) for item in value]
    return without_keys(value) if isinstance(value, str) else value
