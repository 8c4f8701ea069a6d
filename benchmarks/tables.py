"""Write the tables of docs/speed.md anew from results.json.

tables.py puts each table between its two marks, <!-- NAME --> and <!-- end -->; with --check it fails where the page
does not say what results.json holds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "speed.md"
CASES = ("text", "text, larger", "internvl", "qwen3_vl", "qwen3_vl, language")
PEERS = (
    *("LESS, gradients", "autograd loop", "bergson", "bergson, forward mode", "dattri", "dattri-llm", "kronfluence"),
    *("ours, fd", "ours, jvp", "ours, gradient", "LESS, projected", "dattri-llm, compiled", "ours, fd, compiled"),
)
GROUPS = (1, 2, 4, 16, 64)


class Records:
    """What has been measured."""

    def __init__(self, path: Path = HERE / "results.json") -> None:
        self._known = {(one["benchmark"], one["subject"]): one for one in json.loads(path.read_text(encoding="utf-8"))}

    def of(self, benchmark: str) -> dict[str, dict[str, Any]]:
        """The records of a benchmark, by subject."""
        return {subject: one for (name, subject), one in self._known.items() if name == benchmark}

    def figure(self, benchmark: str, subject: str, form: str = "{}", key: str | None = None) -> str:
        """One number, or nothing where it was not measured."""
        one = self._known.get((benchmark, subject), {})
        value = one.get(key) if key else one.get("ratio", one.get("value"))
        return "fails" if one.get("error") else "" if value is None else form.format(value)

    def spread(self, benchmark: str, subject: str, form: str = "{}") -> str:
        """One number and, where several were measured that differ, the lowest and the highest."""
        low, high = (self.figure(benchmark, subject, key=key) for key in ("lowest", "highest"))
        middle = self.figure(benchmark, subject, form)
        return middle if low == high else f"{middle} ({low} to {high})"


def limit(records: Records) -> list[str]:
    """Estimators over plain passes."""
    scopes = ("all", "language", "last quarter of the layers")
    asked = {
        "fd over a plain pass": ("`fd` over a plain pass", "at most 2.2 for all, 1.35 for the last quarter", "{:.2f}"),
        "jvp over a plain pass": ("`jvp` over a plain pass", "at most 3.0", "{:.2f}"),
        "exact with 100 anchors over fd": ("`exact` with 100 anchors over `fd`", "at least 25", "{:.1f}"),
        "exact that keeps nothing of its 100 anchors over fd": ("the same, nothing of the anchors kept", "", "{:.1f}"),
    }
    return table(
        ["what", "asked", *(f"scope {scopes[0]}", *scopes[1:])],
        (
            [name, aim, *(records.figure("limit", f"{key}, scope {scope}", form) for scope in scopes)]
            for key, (name, aim, form) in asked.items()
        ),
    )


def budgets(records: Records) -> list[str]:
    """Tokens of a pass."""
    found = {
        match[1]: f"{one['ratio']:.2f}"
        for subject, one in records.of("limit").items()
        if (match := re.fullmatch(r"plain passes of (\d+) tokens over those by default", subject))
    }
    counts = sorted(found, key=int)
    return table(["tokens of a pass", *counts], [["time over that by default", *(found[count] for count in counts)]])


def compiled(records: Records) -> list[str]:
    """What the compiler brings."""
    share = records.figure("limit", "fd compiled over fd as it is, scope all", "{:.2f}")
    seconds = records.figure("limit", "compile: what the first batches wait")
    return [f"`fd` with `--set compile=true` takes {share} of the time without, after {seconds} s of compiling."]


def peers(records: Records) -> list[str]:
    """How many times faster fd is than each, and whether the other computes the same."""

    def cell(case: str, peer: str) -> str:
        ratio = records.figure(f"peers: {case}", f"{peer}: rows/s of ours, fd, over it", "{:.1f}")
        right = records.figure(f"peers: {case}", f"{peer}: correlation with brute force", "{:.4f}")
        return f"{ratio} ({right})" if ratio else records.figure(f"peers: {case}", peer, "")

    return table(["", *CASES], ([peer, *(cell(case, peer) for case in CASES)] for peer in PEERS))


def fastest(records: Records) -> list[str]:
    """The fastest rival of each case."""
    found = []
    for case in CASES:
        one, compiled = (
            records.of(f"peers: {case}").get(f"{ours}, over the fastest peer")
            for ours in ("ours, fd", "ours, fd, compiled")
        )
        if one is not None:
            more = f"; {compiled['ratio']:.2f} times with blocks compiled" if compiled else ""
            found.append(f"- {case}: {one['ratio']:.2f} times the fastest, {one['peer']}{more}.")
    return found


def failing(records: Records) -> list[str]:
    """The first lines of the errors."""
    return [
        f"- {case}, {peer}: `{one['error'].replace('`', '')[:140]}`"
        for case in CASES
        for peer, one in sorted(records.of(f"peers: {case}").items())
        if one.get("error")
    ]


def sweep(records: Records) -> list[str]:
    """Many anchor groups."""
    pattern = re.compile(r"(.+), (\d+) anchor groups")
    found: dict[int, dict[str, str]] = {}
    for subject, one in records.of("peers: text").items():
        if (match := pattern.fullmatch(subject)) and one.get("value") is not None:
            found.setdefault(int(match[2]), {})[match[1]] = f"{one['value']:.0f}"
    names = sorted(
        {name for row in found.values() for name in row}, key=lambda name: (not name.startswith("ours"), name)
    )
    return table(
        ["anchor groups", *(f"{name}, rows/s" for name in names)],
        ([str(count), *(row.get(name, "") for name in names)] for count, row in sorted(found.items())),
    )


def groups(records: Records) -> list[str]:
    """Passes for each group, or one gradient for all."""
    rows = []
    for where in dict.fromkeys(subject.split(": ")[0] for subject in records.of("groups")):
        for kind in ("fd", "jvp"):
            found = {
                int(match[1]): f"{one['passes']:.1f} or {one['gradient']:.1f}"
                for subject, one in records.of("groups").items()
                if (match := re.fullmatch(rf"{re.escape(where)}: (\d+) groups by {kind}", subject))
            }
            crossing = records.figure("groups", f"{where}: groups where the gradient overtakes {kind}", "{:.1f}")
            rows.append([where, f"`{kind}`", *(found.get(count, "") for count in GROUPS), crossing])
    return table(["", "", *(f"{count} {'group' if count == 1 else 'groups'}" for count in GROUPS), "equal at"], rows)


def growth(records: Records) -> list[str]:
    """Time and memory by size."""
    sizes: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for subject, one in records.of("growth").items():
        if match := re.fullmatch(r"(.+): (\d+)", subject):
            sizes.setdefault(match[1], []).append((int(match[2]), one))
    rows = []
    for name, found in sizes.items():
        found.sort(key=lambda pair: pair[0])
        prepared = name == "anchors"
        times = ", ".join(f"{one['prepare_ms'] / 1000:.1f}" if prepared else f"{one['row_ms']:.1f}" for _, one in found)
        power = "time to prepare" if prepared else "time a row"
        rows.append(
            [
                name,
                ", ".join(str(size) for size, _ in found),
                f"{times} s to prepare" if prepared else times,
                ", ".join(str(one["memory_mb"]) for _, one in found),
                records.figure("growth", f"exponent of {power} in {name}"),
            ]
        )
    return table(["varied", "sizes", "ms a row", "peak MB", "exponent of the time"], rows)


def extrapolation(records: Records) -> list[str]:
    """By arithmetic."""
    found = records.of("extrapolation").items()
    return table(["what", "hours"], ([subject, f"{one['value']:.1f}"] for subject, one in found))


def progress(records: Records) -> list[str]:
    """Before and after."""
    found = [(name, one) for name, one in records.of("progress").items() if "ratio" in one]
    return table(
        ["what", "times faster"],
        ([name.removesuffix(": before over now"), f"{one['ratio']:.2f}"] for name, one in found),
    )


def shares(records: Records) -> list[str]:
    """Where the time goes, before and after."""
    found = [(name, one) for name, one in records.of("progress").items() if "before" in one]
    return table(
        ["share of the time", "before", "now"],
        ([name.removeprefix("share of "), f"{one['before']} %", f"{one['now']} %"] for name, one in found),
    )


def elsewhere(records: Records) -> list[str]:
    """What has to be fast besides."""
    rows = []
    for subject, one in records.of("elsewhere").items():
        rows.append([subject, f"{one['value']} s", f"{one['peak_mb']} MB" if "peak_mb" in one else ""])
    return table(["what", "time", "peak memory"], rows)


TABLES: dict[str, Callable[[Records], list[str]]] = {
    one.__name__: one
    for one in (
        limit,
        compiled,
        budgets,
        peers,
        fastest,
        failing,
        sweep,
        groups,
        growth,
        extrapolation,
        progress,
        shares,
        elsewhere,
    )
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def written(page: str, records: Records) -> str:
    """The page with its tables as the records have them."""

    def anew(match: re.Match[str]) -> str:
        return "\n".join([match[1], *TABLES[match[2]](records), "<!-- end -->"])

    return re.sub(r"(<!-- (\w+) -->)\n(?:(?!<!-- end -->).)*<!-- end -->", anew, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    new = written(page, Records())
    if check and new != page:
        sys.exit(f"{PAGE} does not say what results.json holds; run {Path(__file__).name}")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
