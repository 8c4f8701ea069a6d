"""The command line `ost`: one thin module a command, imported when used.

Results go to stdout, progress to stderr; the exit status is 0 when done, 1 for a mistake that the user can mend (one
line says how), 2 for wrong usage; a bug keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError

from onesteptrain.errors import ConfigError, OneStepError

COMMANDS = {
    "anchors": "Draw anchors from held-out data; refuse those that stand in the pool.",
    "warmup": "Fine-tune the proxy on a few per cent of the pool.",
    "score": "Score every sample of a pool.",
    "audit": "Compare the first-order score with the exact step on your own pool.",
    "select": "Write the best rows of a scored pool.",
    "train": "Fine-tune a target model on a subset.",
    "evaluate": "Answer a benchmark and check the answers.",
    "report": "Write an HTML page about a scored pool.",
    "run": "Do all steps from one YAML file.",
    "methods": "List the installed scoring methods.",
    "demo": "Take the built-in digits world through everything.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app = build_app(tokens)
        app(tokens, exit_on_error=False)
    except CycloptsError:
        return 2  # cyclopts has said what is wrong
    except OneStepError as error:
        print(f"ost: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("ost: interrupted; the same command continues", file=sys.stderr)  # noqa: T201
        return 130
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
        config=files,
    )
    for name, purpose in COMMANDS.items():
        command = (
            _score_command(tokens, files)
            if tokens[:1] == [name] == ["score"]
            else f"onesteptrain.cli.{name}_command:{name}"
        )
        app.command(command, name=name, help=purpose)
    return app


def _score_command(tokens: list[str], files: list[Any]) -> Any:
    """`ost score` has the options of the method that the command line or the file names."""
    from onesteptrain.cli.score_command import for_method

    named = [file.config.get("score", {}).get("method", "one_step") for file in files]
    named += [tokens[place + 1] for place, token in enumerate(tokens[:-1]) if token == "--method"]
    named += [token.removeprefix("--method=") for token in tokens if token.startswith("--method=")]
    return for_method(named[-1] if named else "one_step")


def _config(tokens: list[str]) -> list[Any]:
    """Options from a file, such as the config.yaml of an earlier run; the command line wins over it."""
    if "--config" not in tokens:
        return []
    place = tokens.index("--config")
    if place + 1 == len(tokens):
        raise ConfigError("--config needs the name of a YAML file")
    path = Path(tokens[place + 1])
    del tokens[place : place + 2]
    if not path.is_file():
        raise ConfigError(f"--config {path} does not exist; give the config.yaml of a run, or a file of your own")
    from cyclopts.config import Yaml

    return [Yaml(path, must_exist=True)]
