"""`ost run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.config import Yaml

from onesteptrain.cli.output import say
from onesteptrain.errors import ConfigError
from onesteptrain.jobs.pipeline import Pipeline, run_pipeline


def run(
    file: Path,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> None:
    """Do all steps from one YAML file; what is done already is not done again.

    Options of the file can be given on the command line too, such as `--out DIR` or `--score.step-size 1e-4`, and win;
    `--overwrite` deletes what an earlier run has made, `--json` prints the result as JSON. `ost run FILE --help`
    lists the options.

    Args:
        file: The YAML file, or the config.yaml of an earlier run; paths in it start from the working directory.
        overrides: Options that win over the file.
    """
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; give a YAML file with at least pool, proxy, out and anchors")
    app = App(
        name=f"ost run {file}",
        config=Yaml(file, must_exist=True, root_keys=_root(file)),
        default_parameter=Parameter(consume_multiple=True),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        version_flags=[],
    )
    app.default(_run)
    app(list(overrides), exit_on_error=False, print_error=False, verbose=False)


def _root(file: Path) -> tuple[str, ...]:
    """The config.yaml of an earlier run nests its request under "run"; a file of one's own need not."""
    import yaml

    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML ({' '.join(str(error).split())}); mend the file") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no options; give at least pool, proxy, out and anchors")
    return ("run",) if set(content) == {"run"} else ()


def _run(job: Annotated[Pipeline, Parameter(name="*")], *, overwrite: bool = False, json: bool = False) -> None:
    """Do all steps of the main job.

    Args:
        job: What to do.
        overwrite: Delete what an earlier run has made in the same directory.
        json: Print the result as JSON.
    """
    facts = run_pipeline(job, overwrite=overwrite, tell=lambda text: print(text, file=sys.stderr))  # noqa: T201
    say(f"done: {job.out}", facts, as_json=json)
