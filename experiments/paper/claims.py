"""The paper's claims beside what came out on the digits data: claims.py writes tables/claims.md from the records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.reporting.comparison import ArmResult, summarize_arms
from onesteptrain.storage.atomic import write_text

TABLES = Path(__file__).parent / "tables"
STRICT, LENIENT = ">=0.5", "81%"
"""Rows that the judge accepts; and as many as the paper's judge keeps, so that it rejects less than it would."""


class Claim(NamedTuple):
    """A difference of two arms that the paper reports."""

    what: str
    paper: str
    experiment: str
    arm: tuple[str, str]
    """Method and budget."""

    against: tuple[str, str]


CLAIMS = (
    Claim("Full-SFT against the untuned target", "-3.4 to -1.3", "main", ("full", "100%"), ("untuned", "0%")),
    Claim("OST 50 % against the untuned target", "above 0", "main", ("ost", "50%"), ("untuned", "0%")),
    Claim("OST 50 % against Full-SFT", "", "main", ("ost", "50%"), ("full", "100%")),
    Claim("OST 20 % against Full-SFT", "+8.8", "main", ("ost", "20%"), ("full", "100%")),
    Claim("OST 20 % against DEITA 20 %", "+0.3 to +0.6", "main", ("ost", "20%"), ("deita", "20%")),
    *(
        claim
        for keeps, kind in ((LENIENT, "lenient"), (STRICT, "strict"))
        for claim in (
            Claim(f"Judge ({kind}) against Full-SFT", "+3.2", "main", ("judge", keeps), ("full", "100%")),
            Claim(f"OST 50 % against the judge ({kind})", "+1.8", "main", ("ost", "50%"), ("judge", keeps)),
            Claim(f"OST 20 % against the judge ({kind})", "+5.6", "main", ("ost", "20%"), ("judge", keeps)),
            Claim(f"Protocol A: OST 50 % against the judge ({kind})", "+1.8", "cost", ("ost", "50%"), ("judge", keeps)),
        )
    ),
    Claim("Larger target: Full-SFT, gain", "-3.4 to -1.3", "target-size", ("full", "100%"), ("untuned", "0%")),
    Claim("Larger target: judge (lenient), gain", "+0.2 to +0.4", "target-size", ("judge", LENIENT), ("untuned", "0%")),
    Claim("Larger target: judge (strict), gain", "", "target-size", ("judge", STRICT), ("untuned", "0%")),
    Claim("Larger target: DEITA 20 %, gain", "+0.3 to +0.4", "target-size", ("deita", "20%"), ("untuned", "0%")),
    Claim("Larger target: OST 20 %, gain", "+0.6 to +1.0", "target-size", ("ost", "20%"), ("untuned", "0%")),
    Claim("Larger target: OST 50 %, gain", "", "target-size", ("ost", "50%"), ("untuned", "0%")),
    *(
        Claim(
            f"OST {budget}, proxy warmed up on {share} %, gain",
            gain if budget == "20%" else "",
            "maturity",
            arm,
            ("untuned", "0%"),
        )
        for budget in ("20%", "50%")
        for share, gain in (("0", "+0.4"), ("5", "+0.6"), ("25", "+0.4"), ("100", "+0.2"))
        for arm in [(f"ost-warm-{share}", budget)]
    ),
    *(
        Claim(f"OST {budget}, proxy of {kind} architecture, gain", "", "architecture", (arm, budget), ("untuned", "0%"))
        for budget in ("20%", "50%")
        for kind, arm in (("another", "ost-other"), ("the same", "ost-same"))
    ),
    Claim("30 % noise: Full-SFT, gain", "", "noise", ("full", "100%"), ("untuned", "0%")),
    Claim("30 % noise: OST 50 % against Full-SFT", "", "noise", ("ost", "50%"), ("full", "100%")),
    Claim("30 % noise: OST 20 % against Full-SFT", "", "noise", ("ost", "20%"), ("full", "100%")),
    Claim("30 % noise: OST 50 % against the judge (lenient)", "", "noise", ("ost", "50%"), ("judge", LENIENT)),
    Claim("30 % noise: OST 50 % against the judge (strict)", "", "noise", ("ost", "50%"), ("judge", STRICT)),
)


def main() -> None:
    lines = ["| claim | paper, points | here, points (95 % interval) |", "| --- | --- | --- |"]
    for claim in CLAIMS:
        found = _difference(claim)
        if found is not None:
            here = f"{found['value']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"
            lines.append(f"| {claim.what} | {claim.paper} | {here} |")
    lines += _costs()
    write_text(TABLES / "claims.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def _difference(claim: Claim) -> Mapping[str, Any] | None:
    file = TABLES / claim.experiment / "differences.json"
    if not file.is_file():
        return None
    for one in json.loads(file.read_text(encoding="utf-8")):
        arm, against = (one["method"], one["budget"]), (one["against"], one["against_budget"])
        if (arm, against) == (claim.arm, claim.against):
            return dict(one)
    return None


def _costs() -> list[str]:
    """Cost of OST 50 % relative to the judge, under Protocol A."""
    file = TABLES / "cost" / "records.json"
    if not file.is_file():
        return []
    arms = {(arm.method, arm.budget): arm for arm in summarize_arms(json.loads(file.read_text(encoding="utf-8")))}
    ost = arms["ost", "50%"]
    lines = []
    for keeps, kind in ((LENIENT, "lenient"), (STRICT, "strict")):
        what, judge = f"Protocol A: OST 50 % against the judge ({kind}),", arms["judge", keeps]
        lines += [f"| {what} training time | -43 % | {_change(ost, judge, 'training_seconds')} |"]
        lines += [f"| {what} scoring and training | -17 % | {_change(ost, judge, 'total_seconds')} |"]
    return lines


def _change(arm: ArmResult, against: ArmResult, name: str) -> str:
    return f"{100 * (getattr(arm, name) / getattr(against, name) - 1):+.0f} %"


if __name__ == "__main__":
    main()
