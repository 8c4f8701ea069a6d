"""`ost methods`."""

from __future__ import annotations

import dataclasses
import inspect

from onesteptrain.cli.output import say
from onesteptrain.methods import installed, method_class


def methods(*, json: bool = False) -> None:
    """List the installed scoring methods and their options.

    Args:
        json: Print the result as JSON.
    """
    facts = {}
    lines = []
    for name, entry in installed().items():
        cls = method_class(name)
        options = {field.name: field.default for field in dataclasses.fields(cls)}
        purpose = (inspect.getdoc(cls) or "").splitlines()[0]
        facts[name] = {"purpose": purpose, "options": options, "from": entry.value}
        lines += [f"{name}: {purpose}", *(f"    {option} = {default!r}" for option, default in options.items())]
    say("\n".join(lines), facts, as_json=json)
