"""The store of replies: each is kept from the moment it arrives, under the hash of what was asked.

The key does not hold the endpoint, so that another server with the same model goes on where the first one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from onesteptrain.errors import ConfigError, ScoreError

_SECONDS_TO_WAIT = 60.0
"""For another process that writes at the same time."""

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    text TEXT NOT NULL,
    finished INTEGER NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    seconds REAL NOT NULL
)
"""


class Reply(NamedTuple):
    """What an endpoint answered to one request."""

    text: str
    finished: bool
    """It ended by itself, not at the limit of tokens."""

    prompt_tokens: int | None
    """As the endpoint counts; nothing where it does not."""

    completion_tokens: int | None
    seconds: float
    """From the request to the reply, waits for retries included."""


def default_path() -> Path:
    """The store in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return folder / "onesteptrain" / "judge_replies.sqlite"


def request_key(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request: model, messages with their images, limits, temperature and the vote's seed."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Replies:
    """An open store, for one thread; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open a store, or make one.

        Raises:
            ConfigError: the file cannot be opened, or is no store.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")  # a reply is paid for: keep it through a power cut too
            self._database.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"replies {path} cannot be opened ({error}); give another file as --replies") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def get(self, key: str) -> Reply | None:
        """The reply to a request, if there is one."""
        row = self._database.execute(
            "SELECT text, finished, prompt_tokens, completion_tokens, seconds FROM replies WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else Reply(row[0], bool(row[1]), *row[2:])

    def keep(self, key: str, model: str, reply: Reply) -> Reply:
        """Write a reply through to the disk; where another process was faster, its reply counts.

        Raises:
            ScoreError: the disk is full, or another process holds the file for long.
        """
        try:
            self._database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", (key, model, *reply))
        except sqlite3.OperationalError as error:
            raise ScoreError(f"replies {self._path} cannot be written ({error}); make room, or mend it") from error
        kept = self.get(key)
        assert kept is not None  # noqa: S101  it has just been written
        return kept
