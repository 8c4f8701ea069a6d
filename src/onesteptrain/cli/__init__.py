"""The command line `ost`: a command is a frozen dataclass that does its work when called, imported when used.

Results go to stdout, progress to stderr; the exit status is 0 when done, 1 for a mistake that the user can mend (one
line says how), 2 for wrong usage; a bug keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CoercionError, CycloptsError, Parameter, UnknownOptionError

from onesteptrain.cli.options import COMMON, MAIN, RARE, FromFile, with_rare
from onesteptrain.errors import ConfigError, OneStepError, one_line

COMMANDS = {
    "init": ("starting", "Write a commented YAML file to run on your own files."),
    "run": ("jobs", "Do all steps from one YAML file."),
    "anchors": ("anchoring", "Draw anchors, look at them, suggest rows to check, take checked ones in."),
    "guard": ("pools", "Find near-duplicates, contradictions and leaks in a pool."),
    "warmup": ("scoring", "Fine-tune the proxy on a few per cent of the pool."),
    "score": ("scoring", "Score every sample of a pool."),
    "audit": ("scoring", "Compare the first-order score with the exact step on your own pool."),
    "advise": ("choosing", "Say which share of a scored pool to train on, and how sure that is."),
    "select": ("choosing", "Write a part of a scored pool: drop what harms, keep a share of the rest."),
    "explain": ("explaining", "Say of harmful rows where the harm sits and what is likely wrong."),
    "report": ("choosing", "Write an HTML page about a scored pool."),
    "view": ("viewing", "Look through a scored pool in a browser, and mark rows."),
    "train": ("targets", "Fine-tune a target model on a subset."),
    "evaluate": ("targets", "Answer a benchmark and check the answers."),
    "compare": ("jobs", "Train and measure the subsets of many methods side by side."),
    "methods": ("starting", "List the installed scoring methods."),
    "demo": ("jobs", "Take the built-in digits through everything."),
}
"""Module and purpose of each; the command `name` is the class `Name`. Four modules load no torch: starting,
anchoring, pools and choosing."""

_GONE = {
    "candidates": "exact steps are taken one after the other; leave it out",
    "cascade": "the cascade is gone; use --estimator auto, and `ost audit` to compare it with the exact step",
    "landmark": "landmarks are gone; use --estimator auto",
    "glimpse": "landmarks are gone; use --estimator auto",
    "second_look": "the second look is the second pass of `ost run` now, with the key second_pass",
}
"""What to use in place of options, keys and values that there were."""

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
        build_app(tokens)(tokens)
    except CycloptsError as error:
        command = [token for token in tokens[:1] if token in COMMANDS]
        return _fail(f"{_in_one_line(error)}; see `{' '.join(['ost', *command, '--help'])}`", 2)
    except OneStepError as error:
        return _fail(str(error), 1)
    except OSError as error:
        if error.errno not in _PLACE:
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}; choose another place, or mend it", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", 130)
    return 0


def build_app(tokens: Sequence[str]) -> App:
    """Put the commands together; `ost score` has the options of the method that the tokens or their file name."""
    from importlib.metadata import version

    command = tokens[0] if tokens else ""
    app = App(
        name="ost",
        help="Find the part of a vision-language training pool that harms, and the best share to train on.",
        version=version("onesteptrain"),
        result_action=[with_rare, "call_if_callable", "return_value"],
        group_parameters=MAIN,
        group_arguments=MAIN,
        default_parameter=Parameter(consume_multiple=True, negative="", parse=COMMON),
        config=FromFile(command),
        suppress_keyboard_interrupt=False,  # `main` says that the work continues
        exit_on_error=False,
        print_error=False,
        verbose=False,
    )
    for place, (name, (module, purpose)) in enumerate(COMMANDS.items()):
        made: Any = f"onesteptrain.cli.{module}:{name.capitalize()}"
        if name == command == "score":
            from onesteptrain.cli.scoring import score_command

            made = score_command(_method(tokens[1:]))
        app.command(made, name=name, help=None if name == command else purpose, sort_key=place)
    return app


def _method(tokens: Sequence[str]) -> str:
    """The method that `ost score` is asked for."""
    peek = App(help_flags=(), version_flags=(), config=FromFile("score", partly=True), verbose=False)
    peek.default(_named)
    method = str(peek.parse_known_args(tokens)[1].arguments.get("method", "one_step"))
    if method in _GONE:
        raise ConfigError(f"no method {method!r}: {_GONE[method]}")
    return method


def _named(*, method: str = "one_step", config: Path | None = None) -> None:
    """The options that say which other options there are."""


def _fail(text: str, status: int) -> int:
    print(f"ost: {one_line(text)}", file=sys.stderr)  # noqa: T201
    return status


def _refuse_unknown_command(tokens: Sequence[str]) -> None:
    """Name the commands without importing them all, as cyclopts does to find a similar one."""
    if tokens and not tokens[0].startswith("-") and tokens[0] not in COMMANDS:
        raise CycloptsError(msg=f"There is no command {tokens[0]!r}; choose {', '.join(COMMANDS)}")


def _in_one_line(error: CycloptsError) -> str:
    """What is wrong, and what there is now in place of what is gone."""
    text = " ".join(str(error).split()).rstrip(".")
    token = error.token if isinstance(error, UnknownOptionError | CoercionError) else None
    if token is None:
        return text
    said = token.keyword if isinstance(error, UnknownOptionError) else token.value
    words = re.sub(r"[\W_]+", "_", said or token.value).strip("_")
    if words in RARE:
        return f"{said} is a rare option now; give --set {words}=VALUE"
    gone = [remedy for name, remedy in _GONE.items() if words.startswith(name)]
    return f"{text.split('. Did you mean')[0]}: {gone[0]}" if gone else text
