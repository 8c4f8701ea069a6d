"""The command line `ost`: one thin module a command, imported when used.

Results go to stdout, progress to stderr; the exit status is 0 when done, 1 for a mistake that the user can mend (one
line says how), 2 for wrong usage; a bug keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from onesteptrain.errors import ConfigError, OneStepError

COMMANDS = {
    "anchors": "Draw anchors from held-out data; refuse those that stand in the pool.",
    "guard": "Find near-duplicates, contradictions and leaks in a pool.",
    "warmup": "Fine-tune the proxy on a few per cent of the pool.",
    "score": "Score every sample of a pool.",
    "audit": "Compare the first-order score with the exact step on your own pool.",
    "advise": "Say which share of a scored pool to train on, and how sure that is.",
    "select": "Write a part of a scored pool: drop what harms, keep a share of the rest.",
    "train": "Fine-tune a target model on a subset.",
    "evaluate": "Answer a benchmark and check the answers.",
    "compare": "Train and measure the subsets of many methods side by side.",
    "explain": "Say of harmful rows where the harm sits and what is likely wrong.",
    "report": "Write an HTML page about a scored pool.",
    "run": "Do all steps from one YAML file.",
    "methods": "List the installed scoring methods.",
    "demo": "Take the built-in digits through everything.",
}

_FUNCTIONS = {"advise": "advise_run"}
"""Commands whose function has another name than they."""

_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC}
"""What the operating system says of a place that cannot be written or read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars are for people who watch
    if not sys.warnoptions:  # PyTorch's forward mode warns of a part of PyTorch
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    try:
        _refuse_unknown_command(tokens)
        build_app(tokens)(tokens, exit_on_error=False, print_error=False, verbose=False)
    except CycloptsError as error:
        command = [token for token in tokens[:1] if token in COMMANDS]
        return _fail(f"{_in_one_line(error).rstrip('.')}; see `{' '.join(['ost', *command, '--help'])}`", 2)
    except OneStepError as error:
        return _fail(str(error), 1)
    except OSError as error:
        if error.errno not in _PLACE:
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}; choose another place, or mend it", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", 130)
    return 0


def build_app(tokens: list[str]) -> App:
    """Put the commands together; takes `--config FILE` out of the tokens."""
    from importlib.metadata import version

    files = _config(tokens)
    app = App(
        name="ost",
        help="Find the part of a vision-language training pool that harms, and the best share to train on.",
        version=version("onesteptrain"),
        result_action="return_value",
        default_parameter=Parameter(consume_multiple=True),  # --by skill level
        suppress_keyboard_interrupt=False,  # `main` says that the work continues
        config=files,
    )
    for name, purpose in COMMANDS.items():
        command = (
            _score_command(tokens, files)
            if tokens[:1] == [name] == ["score"]
            else f"onesteptrain.cli.{name}_command:{_FUNCTIONS.get(name, name)}"
        )
        app.command(command, name=name, help=purpose)
    return app


def _fail(text: str, status: int) -> int:
    print(f"ost: {text}", file=sys.stderr)  # noqa: T201
    return status


def _refuse_unknown_command(tokens: list[str]) -> None:
    """Name the commands without importing them all, as cyclopts does to find a similar one."""
    if tokens and not tokens[0].startswith("-") and tokens[0] not in COMMANDS:
        raise CycloptsError(msg=f"There is no command {tokens[0]!r}; choose {', '.join(COMMANDS)}")


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _score_command(tokens: list[str], files: list[Any]) -> Any:
    """`ost score` has the options of the method that the command line or the file names."""
    from onesteptrain.cli.score_command import for_method

    named = [file.data.get("score", {}).get("method", "one_step") for file in files]
    named += [tokens[place + 1] for place, token in enumerate(tokens[:-1]) if token == "--method"]
    named += [token.removeprefix("--method=") for token in tokens if token.startswith("--method=")]
    return for_method(named[-1] if named else "one_step")


def _config(tokens: list[str]) -> list[Any]:
    """Options from a file, such as the config.yaml of an earlier run; the command line wins over it."""
    tokens[:] = [part for token in tokens for part in (token.split("=", 1) if "--config=" in token[:9] else [token])]
    if "--config" not in tokens:
        return []
    place = tokens.index("--config")
    if place + 1 == len(tokens):
        raise ConfigError("--config needs the name of a YAML file")
    path = Path(tokens[place + 1])
    del tokens[place : place + 2]
    if not path.is_file():
        raise ConfigError(f"--config {path} does not exist; give the config.yaml of a run, or a file of your own")
    from cyclopts.config import Dict

    from onesteptrain.data.score_record import side_by_side

    sections = _sections(path)
    if "score" in sections:
        sections["score"] = side_by_side(sections["score"])
    return [Dict(sections, source=str(path.absolute()))]


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    """Cyclopts passes over a section that it does not know; a typo there must not go unnoticed."""
    import yaml

    needed = "it needs a section for each command, such as `score:`, with the options indented below; mend the file"
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is no YAML ({_in_one_line(error)}); {needed}") from error
    if not isinstance(sections, dict) or not all(isinstance(options, dict) for options in sections.values()):
        raise ConfigError(f"--config {path} holds no sections of options; {needed}")
    for name in sections:
        if name not in COMMANDS:
            raise ConfigError(f"--config {path} has a section {name!r}, but there is no such command; {needed}")
    return sections
