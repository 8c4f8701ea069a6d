"""`ost init` and `ost methods`: what there is to begin with."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from onesteptrain.cli.options import Command, Writer
from onesteptrain.methods import installed, method_class


@dataclass(frozen=True)
class Methods(Command):
    """List the installed scoring methods and their options.

    Example: `ost methods`
    """

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
        self.say("\n".join(lines), facts, ["score", "--method", "NAME", "--help"])


@dataclass(frozen=True)
class Init(Writer):
    """Write a commented YAML file for `ost run` on your own files: every key, what it means, and its default.

    Example: `ost init pool.json --heldout heldout.jsonl --proxy OpenGVLab/InternVL3-1B-hf`
    """

    pool: Path
    """The pool file or folder."""

    _: KW_ONLY

    heldout: Path | None = None
    """Trusted samples that anchors are drawn from, by the columns that have a few values."""

    anchors: Path | None = None
    """Trusted samples to use as they are, in place of --heldout."""

    proxy: str = "OpenGVLab/InternVL3-1B-hf"
    """Checkpoint folder or hub name of a small vision-language model."""

    run: Path = Path("run")
    """Run directory that the job is to write."""

    out: Path = Path("job.yaml")
    """The file to write."""

    def __call__(self) -> None:
        """Look at the files and write."""
        from onesteptrain.jobs.template import job_template, write_job_file  # loads torch

        text = job_template(self.pool, heldout=self.heldout, anchors=self.anchors, proxy=self.proxy, out=self.run)
        write_job_file(self.out, text, overwrite=self.overwrite)
        then = ["run", self.out, "--dry-run"]
        self.say(
            f"wrote {self.out}: read it, and change what you like",
            {"out": str(self.out)},
            then,
        )
