"""Whether a run directory answers a request: by the content of its files, wherever these lie, and by its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.data.contents import content_of
from onesteptrain.data.pool import Sample
from onesteptrain.errors import RunError
from onesteptrain.scoring.reuse import POOL_INPUTS
from onesteptrain.storage.run_directory import Run, begin_run, difference

_PLACES = {"pool": ("pool", "pool_reading image_root"), "anchors": ("anchors", "anchor_reading anchor_image_root")}
"""Options that say where an input lies."""

_ROWS = ("pool", "pool_reading", "scoring")
"""Options that say which rows are scored and how they are worked through: scores of rows do not depend on them."""


class Asked(NamedTuple):
    """A request for scores."""

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    incidental: frozenset[str]

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        anchors: Sequence[Sample],
        incidental: set[str],
    ) -> Asked:
        """Put it together; the pictures of the anchors are an input too."""
        pictures = {"pictures of the anchors": content_of(anchors)} if anchors else {}
        return cls(config, {**inputs, **pictures}, frozenset(incidental))

    def begin(self, path: Path, *, overwrite: bool) -> AbstractContextManager[Run]:
        """Own the run directory; the pool may hold other rows than before, as long as it is in the same place."""
        there = (path / "config.yaml").is_file() and not overwrite
        places = self._places(Run(path)) if there else frozenset[str]()
        return begin_run(
            path,
            self.config,
            self.inputs,
            overwrite=overwrite,
            incidental=self.incidental | places,
            renewable=POOL_INPUTS,
        )

    def put_on_record(self, run: Run) -> None:
        """Let the directory say where things lie now."""
        if difference(run.path, self.config, {}, self.incidental):
            run.ask(self.config)

    def refuse_other_settings(self, reuse: Path) -> None:
        """Refuse to take scores over from a run that answers another question.

        Raises:
            RunError: it does.
        """
        inputs = {name: value for name, value in self.inputs.items() if name not in POOL_INPUTS}
        run = Run(reuse)
        skipped = self.incidental | self._places(run) | _row_options(self.config) | _row_options(run.config)
        if different := difference(reuse, self.config, inputs, skipped):
            raise RunError(f"{reuse} was scored with other {different}; score without reuse")

    def _places(self, run: Run) -> frozenset[str]:
        """Options that say where something lies whose content is the same as before."""
        before = run.provenance.get("inputs", {})
        same = [name for name, value in self.inputs.items() if before.get(name) == value]
        options = [option for name in same for option in _PLACES.get(name, (name, f"method options {name}"))]
        return frozenset(f"score {option}" for option in options)


def _row_options(config: Mapping[str, Any]) -> set[str]:
    """The options that say which rows are scored, with the keys that lead to each."""
    asked = config.get("score", {})
    owned = {owner: asked.get(owner) for owner in _ROWS}
    nested = {f"score {owner} {name}" for owner, value in owned.items() if isinstance(value, Mapping) for name in value}
    return nested | {f"score {owner}" for owner in owned}
