"""`ost methods` and `ost init`."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Annotated

from onesteptrain.cli.options import OUTPUT, Printing
from onesteptrain.cli.output import say
from onesteptrain.methods import installed, method_class


@dataclass(frozen=True)
class Methods:
    """List the installed scoring methods and their options.

    Example: `ost methods`
    """

    output: Annotated[Printing, OUTPUT] = Printing()

    def __call__(self) -> None:
        """List them."""
        facts = {}
        lines = []
        for name, entry in installed().items():
            cls = method_class(name)
            options = {field.name: field.default for field in dataclasses.fields(cls)}
            purpose = (inspect.getdoc(cls) or "").splitlines()[0]
            facts[name] = {"purpose": purpose, "options": options, "from": entry.value}
            lines += [f"{name}: {purpose}", *(f"    {option} = {default!r}" for option, default in options.items())]
        say("\n".join(lines), facts, as_json=self.output.json, then=["score", "--method", "NAME", "--help"])
