"""`ost demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from onesteptrain.cli.output import say
from onesteptrain.jobs.demo import DemoOptions, run_demo

Flat = Parameter(name="*")


def demo(
    *,
    out: Path = Path("ost-demo"),
    options: Annotated[DemoOptions, Flat] = DemoOptions(),
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Take the built-in digits through everything, in a few minutes on a laptop.

    Args:
        out: New folder for all that is made.
        options: How large the demo is.
        overwrite: Delete the folder of an earlier demo.
        json: Print the result as JSON.
    """

    def tell(text: str) -> None:
        print(text, file=sys.stderr if json else sys.stdout, flush=True)

    results = run_demo(out, options, overwrite=overwrite, tell=tell)
    if json:
        say("", {"results": results}, as_json=True)
