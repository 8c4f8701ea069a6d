"""`ost anchors`: trusted samples drawn, looked at, and added to."""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from onesteptrain.cli.options import FILES, Writer, panel
from onesteptrain.cli.output import moved_images, tell
from onesteptrain.data.pool import Pool, open_pool
from onesteptrain.data.score_record import read_score_record
from onesteptrain.errors import ConfigError, one_line
from onesteptrain.jobs.anchor_files import (
    Accepted,
    AnchorCheck,
    Suggested,
    accept_file,
    check_anchors,
    suggest_file,
)
from onesteptrain.jobs.steps import AnchorDraw, PoolOptions, draw_anchor_file, readable
from onesteptrain.selection.recorded import scored_pool
from onesteptrain.storage.score_table import read_scores


@dataclass(frozen=True)
class Anchors(Writer):
    """Draw a stratified anchor set from held-out data; or check anchors, suggest rows to add, accept checked rows.

    Example: `ost anchors heldout.jsonl --pool pool.json --by topic level --out anchors.jsonl`

    To check, before scoring or with its scores: `ost anchors anchors.jsonl --check --pool pool.json`, or
    `ost anchors --check --run run`

    To suggest rows of the pool that a person should check: `ost anchors --suggest 50 --run run --out suggested.jsonl`

    To accept those that were marked good: `ost anchors anchors.jsonl --accept suggested.jsonl --out more.jsonl`
    """

    heldout: Path | None = None
    """Trusted samples that no model was trained on; the anchors themselves to check or to add to them."""

    _: KW_ONLY

    out: Path | None = None
    """The file to write: anchors in the format of the held-out data, or suggested rows as messages."""

    pool: Path | None = None
    """The pool to be scored; anchors that stand in it are refused."""

    check: bool = False
    """Say whether the anchors are like the pool, which kinds of rows they lack, and which may be wrong."""

    suggest: int | None = None
    """Write so many rows of the scored pool whose checking by a person would help most."""

    accept: Path | None = None
    """File of --suggest whose rows a person has marked: those marked good become anchors."""

    run: Path | None = None
    """Run directory of `ost score`: checks with its scores, suggests from its pool."""

    kind: tuple[str, ...] = ()
    """Columns that say of which kind a row is, such as source; a check takes all that pool and anchors share."""

    draw: Annotated[AnchorDraw, panel("How anchors are drawn", 1)] = AnchorDraw()
    reading: Annotated[PoolOptions, FILES] = PoolOptions()

    pool_image_root: Path | None = None
    """Folder that relative image paths of the pool, or of suggested rows, start from."""

    def __call__(self) -> None:
        """Do the one thing that is asked for."""
        given = {"check": self.check, "suggest": self.suggest is not None, "accept": self.accept is not None}
        asked = [name for name, there in given.items() if there]
        if len(asked) > 1:
            raise ConfigError(f"{' and '.join(f'--{name}' for name in asked)} are asked for; do one after the other")
        {"check": self._check, "suggest": self._suggest, "accept": self._accept}.get("".join(asked), self._draw)()

    def _draw(self) -> None:
        heldout, out = self._anchors("held-out samples to draw from"), self._out()
        pool = self._pool()
        drawn = draw_anchor_file(heldout, pool, out, self.draw, overwrite=self.overwrite)
        checked = "none of them stands in the pool" if pool else "not checked against a pool; give --pool"
        text = f"drew {drawn} anchors: {out} ({checked})" + moved_images(heldout.image_root, out)
        facts = {"anchors": drawn, "out": str(out), "image_root": str(heldout.image_root)}
        self.say(text, facts, ["warmup", self.pool or "POOL", "--proxy", "MODEL", "--out", "warm"])

    def _check(self) -> None:
        table = None if self.run is None else read_scores(self.run)
        if table is None:
            anchors, pool = self._anchors("the anchors"), self._pool()
        else:
            record = read_score_record(table.path.parent)
            anchors = record.open_anchors() if self.heldout is None else self._anchors("the anchors")
            pool = scored_pool(table) if self.pool is None else self._pool()
        found = check_anchors(list(readable(anchors)), pool, table=table, kinds=self.kind)
        then = ["anchors", "--suggest", 50, "--run", self.run or "RUN", "--out", "suggested.jsonl"]
        self.say(describe_check(found), check_facts(found), then if found.findings else ())

    def _suggest(self) -> None:
        if self.run is None:
            raise ConfigError("rows are suggested from a scored pool; give its run directory as --run")
        out, table = self._out(), read_scores(self.run)
        made = suggest_file(table, out, count=self.suggest or 0, kinds=self.kind, overwrite=self.overwrite)
        anchors = self.heldout or read_score_record(table.path.parent).asked["anchors"]
        then = ["anchors", anchors, "--accept", out, "--out", "ANCHORS"]
        facts = {"rows": made.rows, "kinds": dict(made.kinds), "out": str(out), "page": str(made.page)}
        self.say(describe_suggested(made, out), facts, then)

    def _accept(self) -> None:
        if self.accept is None:  # only called with it
            return
        anchors, out = self._anchors("the anchors to add to"), self._out()
        suggested = open_pool(self.accept, image_root=self.pool_image_root, allow_outside=True)  # made by us
        made = accept_file(anchors, suggested, out, overwrite=self.overwrite)
        text = describe_accepted(made, out) + moved_images(anchors.image_root, out)
        facts = {**made._asdict(), "out": str(out), "image_root": str(anchors.image_root)}
        pool = made.pools[0] if len(made.pools) == 1 else "POOL"
        self.say(text, facts, ["score", pool, "--anchors", out, "--proxy", "PROXY", "--out", "RUN"])

    def _anchors(self, what: str) -> Pool:
        if self.heldout is None:
            raise ConfigError(f"no file is given; name {what}, as in `ost anchors FILE`")
        trusted = dataclasses.replace(self.reading, allow_outside=True)  # accepted rows name pictures elsewhere
        return trusted.open_checked(self.heldout, tell)

    def _pool(self) -> Pool | None:
        if self.pool is None:
            return None
        return open_pool(self.pool, image_root=self.pool_image_root, **self.reading.for_others())

    def _out(self) -> Path:
        if self.out is None:
            raise ConfigError("there is no place for the result; give --out")
        return self.out


def describe_check(found: AnchorCheck) -> str:
    """What was found of anchors, for people."""
    lines = [f"{found.anchors} anchors: {len(found.findings) or 'no'} findings"]
    lines += [f"  {finding.about}: {finding.text}" for finding in found.findings]
    if found.odd is not None and found.odd.anchors:
        lines += [f"{len(found.odd.anchors)} anchors look like corrupted ones; are they right?"]
        lines += [f"  row {odd.row} ({one_line(odd.uid)}): {odd.why}" for odd in found.odd.anchors]
    elif found.odd is not None:
        lines.append(
            "no anchor looks like a corrupted one"
            if found.odd.told
            else "whether anchors are wrong cannot be told: to this proxy corrupted anchors look much like right ones"
        )
    else:
        lines.append("whether anchors are wrong is told with scores by method one_step and 20 anchors: give --run")
    return "\n".join(lines)


def check_facts(found: AnchorCheck) -> dict[str, Any]:
    """The same for machines."""
    odd = found.odd and {"told": found.odd.told, "anchors": [anchor._asdict() for anchor in found.odd.anchors]}
    return {"anchors": found.anchors, "findings": [each._asdict() for each in found.findings], "odd": odd}


def describe_suggested(made: Suggested, out: Path) -> str:
    """What to do with suggested rows, for people."""
    kinds = [f"{count} of {kind}" for kind, count in made.kinds.most_common() if kind]
    return "\n".join(
        [
            f"{made.rows} rows to check{': ' if kinds else ''}{', '.join(kinds)}: {out}",
            f'look at them in {made.page}, and write good, bad or unsure into "checked" of each row; a row is good if '
            "you would let a model learn it as it stands",
        ]
    )


def describe_accepted(made: Accepted, out: Path) -> str:
    """What became of suggested rows, for people."""
    counts = ", ".join(f"{count} {mark or 'not marked'}" for mark, count in made.marks.items())
    lines = [f"took in {made.taken} of {sum(made.marks.values())} rows ({counts}): {out}, {made.anchors} anchors"]
    if made.repeats:
        lines.append(f"{made.repeats} good rows say what an anchor says already, and were left out")
    lines.append("`ost score` with these anchors leaves the rows out of their pool, so that they do not leak")
    return "\n".join(lines)
