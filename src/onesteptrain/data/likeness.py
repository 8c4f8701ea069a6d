"""Whether anchors are like the pool, by texts and pictures alone: form, lengths, pictures, wording, kinds of rows.

Clean rows that no anchor is like look wrong, and anchors that no row is like say nothing of the pool. Noise sets a pool
apart from its anchors too, so that only large differences, which chance does not make, are worth a word.

Source of `share_below`: Wilks, Determination of sample sizes for setting tolerance limits (1941).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from onesteptrain.data.pool import Sample, Unreadable, draw_rows, text_of
from onesteptrain.data.traits import Traits, read_traits
from onesteptrain.storage.atomic import write_json

About = Literal["form", "lengths", "pictures", "wording", "kinds", "loss", "repeated", "out of line"]

DRAWN = 1000
"""Rows of the pool, and anchors, whose texts and pictures are looked at; kinds are counted over all."""

_MOST_VALUES = 50
"""Values up to which a column that nobody named tells kinds of rows."""

_MANY = 0.1
"""Share of rows, or of anchors, from which on it is worth a word."""

_RARE_KIND = 0.01
"""The same of a kind of rows that has no anchor."""

_FEW = 1 / 3
"""Part of its share in the one that a form or kind has at most in the other, to be worth a word."""

_CHANCE = 1e-3
"""Probability up to which a difference is none that chance would make."""

_WIDER = 1.5
"""Times that the range of the anchors' sizes is widened at both ends, as a few anchors do not show all of it."""

_FAR = 0.05
"""Share of the anchors that are as far out as a row must be to be counted."""

_NAMED = 5
_QUOTED = 80

_REMEDY = "give anchors like the pool's rows"


FINDINGS = "anchors.json"
"""What was found of the anchors of a scored pool, beside its score table."""


class Finding(NamedTuple):
    """What sets pool and anchors apart, or is wrong with the anchors, in words."""

    about: About
    text: str


def write_findings(findings: Sequence[Finding], folder: Path) -> None:
    """Keep findings in a run directory."""
    write_json(folder / FINDINGS, {"findings": [finding._asdict() for finding in findings]})


def read_findings(folder: Path) -> list[Finding]:
    """The findings that a run directory keeps; none where nobody looked."""
    path = folder / FINDINGS
    if not path.is_file():
        return []
    return [Finding(**finding) for finding in json.loads(path.read_text(encoding="utf-8"))["findings"]]


def compare(
    anchors: Sequence[Sample], pool: Iterable[Sample | Unreadable], kinds: Sequence[str] | None = None
) -> list[Finding]:
    """Look at anchors and pool; the pool is read once, and memory holds a thousand of its rows.

    Args:
        anchors: Trusted samples.
        pool: What is to be scored.
        kinds: Columns that say of which kind a row is; by default all that pool and anchors share, with few values.
    """
    names = sorted({name for anchor in anchors for name in anchor.fields}) if kinds is None else kinds
    most = _MOST_VALUES if kinds is None else math.inf
    values = {name: Counter[str]() for name in names}
    rows = draw_rows(_counted(pool, values, most), DRAWN, seed=0)
    if not rows or not anchors:
        return []
    some = draw_rows(anchors, DRAWN, seed=0)
    ours, theirs = ([read_traits(sample) for sample in part] for part in (rows, some))
    findings = [
        *_compare_forms(ours, theirs),
        *_compare_trait_sizes(ours, theirs),
        *_compare_words(rows, ours, theirs),
    ]
    for name, counts in values.items():
        if len(counts) <= most:
            findings += _compare_kinds(name, counts, Counter(kind_of(anchor, name) for anchor in anchors))
    return findings


def kind_of(sample: Sample, column: str) -> str:
    """The value of a column as text; empty where there is none."""
    value = sample.fields.get(column)
    return "" if value is None else str(value)


def kind_by(row: Sample | Unreadable, columns: Sequence[str]) -> str:
    """The values of some columns, joined; empty of a row that cannot be read."""
    return ", ".join(kind_of(row, column) for column in columns) if isinstance(row, Sample) else ""


def compare_sizes(
    name: str, unit: str, rows: NDArray[np.float64], anchors: NDArray[np.float64], about: About = "lengths"
) -> list[Finding]:
    """Say how many rows have larger or smaller sizes than all anchors, and the other way round; NaN is passed over."""
    rows, anchors = rows[np.isfinite(rows)], anchors[np.isfinite(anchors)]
    if not len(rows) or not len(anchors):
        return []
    small, large = ("smaller", "larger") if about == "pictures" else ("shorter", "longer")
    findings = []
    for part, beyond, others in (("rows", rows, "anchor's"), ("anchors", anchors, "row's")):
        limits = anchors if part == "rows" else rows
        low, high = limits.min() / _WIDER, limits.max() * _WIDER
        for share, how in ((float((beyond < low).mean()), small), (float((beyond > high).mean()), large)):
            if share >= _MANY:
                ends = f"{limits.min():.0f} to {limits.max():.0f} {unit}"
                text = f"{share:.0%} of the {part} have {name} that are {how} than any {others} ({ends}): {_REMEDY}"
                findings.append(Finding(about, text))
    return findings


def share_below(rows: NDArray[np.float64], anchors: NDArray[np.float64]) -> float:
    """Share of the rows that are below all but 5 % of the anchors; 0 where chance may have made it.

    The share of rows like the anchors below the k-th smallest of n anchors has the distribution Beta(k, n + 1 - k).
    """
    place = int(_FAR * len(anchors))
    share = float((rows < np.sort(anchors)[place]).mean())
    return share if share > beta.ppf(1 - _CHANCE, place + 1, len(anchors) - place) else 0.0


def _counted(
    pool: Iterable[Sample | Unreadable], values: Mapping[str, Counter[str]], most: float
) -> Iterator[Sample | Unreadable]:
    """The rows, while the values of columns are counted, of each until it has more than the most."""
    for row in pool:
        if isinstance(row, Sample):
            for name, counts in values.items():
                if len(counts) <= most:
                    counts[kind_of(row, name)] += 1
        yield row


def _compare_forms(rows: Sequence[Traits], anchors: Sequence[Traits]) -> Iterator[Finding]:
    """Of each trait, what sets the two apart most."""
    for trait in rows[0].form:
        ours, theirs = (Counter(each.form[trait] for each in part) for part in (rows, anchors))
        gaps = {
            does: theirs[does] / theirs.total() - ours[does] / ours.total()
            for does in ours | theirs
            if _lacks(theirs, ours, does) or _lacks(ours, theirs, does)
        }
        if gaps:
            does = max(gaps, key=lambda value: (abs(gaps[value]), gaps[value]))
            ourselves, they = (f"{part[does] / part.total():.0%} of the" for part in (ours, theirs))
            if gaps[does] < 0:
                text = f"{ourselves} rows {does}, and {they} anchors: if such rows can be right, give anchors like them"
            else:
                text = f"{they} anchors {does}, and {ourselves} rows: {_REMEDY}"
            yield Finding("pictures" if trait == "pictures" else "form", text)


def _lacks(few: Counter[str], many: Counter[str], value: str) -> bool:
    """Whether a value that is frequent in one is rarer in the other than chance makes it."""
    share = many[value] / many.total()
    there, total = few[value], few.total()
    return share >= _MANY and there < _FEW * share * total and bool(binom.cdf(there, total, share) < _CHANCE)


def _compare_trait_sizes(rows: Sequence[Traits], anchors: Sequence[Traits]) -> Iterator[Finding]:
    for name in rows[0].sizes:
        ours, theirs = (np.array([each.sizes[name] for each in part]) for part in (rows, anchors))
        pictures = name == "pictures"
        yield from compare_sizes(
            name, "pixels" if pictures else "characters", ours, theirs, "pictures" if pictures else "lengths"
        )


def _compare_words(samples: Sequence[Sample], rows: Sequence[Traits], anchors: Sequence[Traits]) -> Iterator[Finding]:
    """Whether rows ask in words that are farther from every anchor than anchors are from each other."""
    if len(anchors) < 2:
        return
    among = _overlaps(anchors, anchors)
    np.fill_diagonal(among, -1.0)
    ours = _overlaps(rows, anchors).max(1)
    if (share := share_below(ours, among.max(1))) >= _MANY:
        question = text_of(samples[int(ours.argmin())], "user").strip()[:_QUOTED]
        yield Finding(
            "wording",
            f"{share:.0%} of the rows ask in other words than all anchors, such as {question!r}: "
            "give anchors that ask what the pool asks",
        )


def _overlaps(rows: Sequence[Traits], anchors: Sequence[Traits]) -> NDArray[np.float64]:
    """Words in common over words in all (Jaccard), "row anchor"."""
    known = {word: place for place, word in enumerate(sorted(set().union(*(each.words for each in anchors))))}
    holds = [np.zeros((len(part), len(known)), np.float32) for part in (rows, anchors)]
    for matrix, part in zip(holds, (rows, anchors), strict=True):
        for row, each in enumerate(part):
            matrix[row, [known[word] for word in each.words if word in known]] = 1
    sizes = [np.array([len(each.words) for each in part], float) for part in (rows, anchors)]
    both = (holds[0] @ holds[1].T).astype(float)
    shared: NDArray[np.float64] = both / np.maximum(sizes[0][:, None] + sizes[1] - both, 1)
    return shared


def _compare_kinds(column: str, rows: Counter[str], anchors: Counter[str]) -> Iterator[Finding]:
    """Kinds of rows with no anchors, or few; a column without a common value says where rows are from, not what."""
    if not set(anchors) & set(rows):
        return
    none = {kind: rows[kind] / rows.total() for kind in rows if not anchors[kind]}
    few = {kind: rows[kind] / rows.total() for kind in rows if anchors[kind] and _lacks(anchors, rows, kind)}
    lists = (
        ("no anchor is", {kind: share for kind, share in none.items() if share >= _RARE_KIND}),
        ("few anchors are", few),
    )
    for start, kinds in lists:
        if kinds:
            named = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
            shown = ", ".join(f"{kind!r} ({kinds[kind]:.0%} of the rows)" for kind in named[:_NAMED])
            more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            yield Finding("kinds", f"{start} of {column} {shown}{more}: add some, as with `ost anchors --suggest`")
