"""A run directory: what was asked, with what, and what came out.

`config.yaml` is the request and can be replayed; `provenance.json` says which versions, inputs and device answered it.
The same request in the same directory continues where it stopped; another request is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onesteptrain.errors import OneStepError, RunError
from onesteptrain.storage.atomic import write_json, write_text
from onesteptrain.storage.ownership import MARKER, delete_made, kind_of, mark, passing
from onesteptrain.storage.plain_yaml import parse_yaml
from onesteptrain.storage.secrets import kept_secret

_KIND = "a run"
NOTED = ("contents.parquet", "pictures.parquet")
"""What a run notes of its pool before it has made anything: digests of rows, and of picture files."""

_PLACE = "place"
"""Key of provenance.json: where the directory was when its paths were written."""
_PATIENCE = 600.0
"""Seconds that a rank waits for the first one to begin."""

_PACKAGES = ("onesteptrain", "torch", "transformers", "tokenizers", "pyarrow", "numpy", "pillow", "peft")


@dataclass(frozen=True)
class Run:
    """A directory that one request owns."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The request; paths of a directory that was moved together with what they name lead there.

        Raises:
            RunError: this is no run directory, or its config.yaml is broken.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            raise RunError(
                f"{self.path} is no run directory (it has no config.yaml); give the --out of an earlier command"
            )
        try:
            asked = dict(parse_yaml(file.read_text(encoding="utf-8"), file))
            was, place = str(self.provenance.get(_PLACE, "")), os.path.abspath(self.path)
            return _moved(asked, was, place) if os.path.isabs(was) and was != place else asked
        except (OSError, TypeError, ValueError) as error:
            raise _broken(file, error) from error

    @property
    def provenance(self) -> dict[str, Any]:
        """What answered the request; empty where nothing is on record.

        Raises:
            RunError: the record is broken.
        """
        file = self.path / "provenance.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise _broken(file, error) from error

    def ask(self, config: Mapping[str, Any]) -> None:
        """Put a request on record."""
        write_text(
            self.path / "config.yaml", yaml.safe_dump(kept_secret(dict(config)), sort_keys=False, allow_unicode=True)
        )

    def record(self, **facts: Any) -> None:
        """Add facts to provenance.json."""
        write_json(self.path / "provenance.json", {**self.provenance, **facts})


def _moved(asked: Any, was: str, place: str) -> Any:
    """A request in which paths that stand to the new place as they stood to the old one lead to what is there."""
    if isinstance(asked, dict):
        return {key: _moved(value, was, place) for key, value in asked.items()}
    if isinstance(asked, list):
        return [_moved(value, was, place) for value in asked]
    if not isinstance(asked, str) or not os.path.isabs(asked):
        return asked
    there = os.path.normpath(os.path.join(place, os.path.relpath(asked, was)))
    return there if os.path.exists(there) else asked


def _broken(file: Path, error: Exception) -> RunError:
    return RunError(f"{file} is broken ({error}); put it back, or begin again in another folder")


@contextlib.contextmanager
def begin_run(
    path: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    overwrite: bool = False,
    incidental: Collection[str] = (),
    renewable: Collection[str] = (),
) -> Iterator[Run]:
    """Own a run directory while the block runs; a new one is made, one of the same request is continued.

    Args:
        path: The directory.
        config: The request, as plain values; whether two requests are the same is decided on it and the inputs.
        inputs: Fingerprint of each file that goes in.
        overwrite: Delete what an earlier run has made first, even one of the same request: images may have been
            mended since. Files that no run made stay.
        incidental: Options that may differ between the calls of one request, such as how many requests are under way;
            each with the keys that lead to it, such as "score scoring readers".
        renewable: Inputs whose content may have changed: the caller renews what was made of them.

    Raises:
        RunError: another process works there, it holds another request, or it is no run directory.
    """
    config = kept_secret(dict(config))
    compared = {name: value for name, value in inputs.items() if name not in renewable}
    check = functools.partial(_check, path, config, compared, overwrite=overwrite, incidental=incidental)
    check()
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        check()
        if overwrite:
            delete_made(path)
        if not (path / "config.yaml").exists():
            mark(path, _KIND)
            facts = {"schema": 1, "inputs": dict(inputs), _PLACE: os.path.abspath(path), **_surroundings()}
            write_json(path / "provenance.json", facts)
            Run(path).ask(config)
        elif Run(path).provenance.get(_PLACE) != os.path.abspath(path):
            Run(path).ask(Run(path).config)
            Run(path).record(**{_PLACE: os.path.abspath(path)})
        try:
            yield Run(path)
        except OneStepError:
            if not _holds_more(path):  # a request that was refused at once must not keep its mended self out
                delete_made(path)
            raise


def join_run(
    path: Path, config: Mapping[str, Any], inputs: Mapping[str, str], *, incidental: Collection[str] = ()
) -> Run:
    """Take part in a run that another process owns; waits until that one has begun.

    Args:
        path: The directory.
        config: The request, as in `begin_run`.
        inputs: Fingerprint of each file that goes in.
        incidental: Options that may differ, as in `begin_run`.

    Raises:
        RunError: the directory holds another request, or nobody has begun within ten minutes.
    """
    asked, until, different = kept_secret(dict(config)), time.monotonic() + _PATIENCE, "no run"
    while different:
        if (path / "config.yaml").is_file():
            different = difference(path, asked, inputs, incidental)
        if different and time.monotonic() > until:
            raise RunError(f"output folder {path} holds {different}; start rank 0 with the same options")
        time.sleep(0.2 if different else 0.0)
    return Run(path)


def _check(
    path: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    overwrite: bool,
    incidental: Collection[str],
) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"output {path} is a file; give a directory")
    ours = kind_of(path) == _KIND
    if not (path / "config.yaml").exists() or not (ours or (path / "provenance.json").exists()):
        if _holds_more(path) and not ours:
            raise RunError(f"output folder {path} is in use and is no run directory; choose another --out")
        return
    if overwrite and ours:
        return
    if overwrite:
        raise RunError(
            f"output folder {path} cannot be overwritten: it does not say which files ost made (it has no {MARKER}); "
            "choose another --out"
        )
    if different := difference(path, config, inputs, incidental):
        remedy = ", or add --overwrite" if ours else ""
        raise RunError(f"output folder {path} holds a run with other {different}; choose another --out{remedy}")


def _holds_more(path: Path) -> bool:
    """Whether a directory holds anything but what every run begins with."""
    names = [Path("config.yaml"), Path("provenance.json"), *map(Path, NOTED)]
    first = {".lock", MARKER, *(path.name for name in names for path in (name, passing(name)))}
    return any(child.name not in first for child in path.iterdir())


def difference(path: Path, config: Mapping[str, Any], inputs: Mapping[str, str], incidental: Collection[str]) -> str:
    """What sets an earlier request apart from this one, in words; empty where they are the same.

    Args:
        path: The run directory of the earlier one.
        config: The request.
        inputs: Fingerprint of each file that goes in.
        incidental: Options that may differ, with the keys that lead to each.
    """
    run = Run(path)
    there, wanted = _flat(run.config), _flat(yaml.safe_load(yaml.safe_dump(dict(config))))
    names = [
        f"{key} ({there.get(key)!r}, now {wanted.get(key)!r})"
        for key in {**there, **wanted}
        if there.get(key) != wanted.get(key) and key not in incidental
    ]
    before = run.provenance.get("inputs", {})
    names += [f"content of {key}" for key in inputs if before.get(key) != inputs[key]]
    return ", ".join(names)


def _flat(config: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {path: config}
    return {key: leaf for name, value in config.items() for key, leaf in _flat(value, f"{path} {name}".strip()).items()}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with (path / ".lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise RunError(
                f"output folder {path} is in use by process {lock.read().strip() or '?'}; "
                "wait for it, or choose another --out"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _surroundings() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": kept_secret(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }
