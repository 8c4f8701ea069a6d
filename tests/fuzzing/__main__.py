"""`python -m tests.fuzzing --cases 1000000 --workers 8`: cases of all kinds, and what they find."""

from __future__ import annotations

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # the others set a gigabyte of addresses aside
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzzing.batches import Batch, Finding, run_batches
from tests.fuzzing.cases import KINDS, run

_SHOWN = 3


def main() -> int:
    """Run cases; 1 if one of them did what none may do."""
    asked = _parser().parse_args()
    if asked.again is not None:
        run(KINDS[asked.kinds[0]], asked.again)
        return 0
    if "checkpoints" in asked.kinds:
        import onesteptrain.proxy  # noqa: F401 - once, and not in each process
    asked.findings.mkdir(parents=True, exist_ok=True)
    found, total, started, said = Counter[str](), 0, time.monotonic(), 0.0
    for done in run_batches(planned(asked.kinds, asked.cases, asked.batch, asked.seed), asked.findings, asked.workers):
        total += done.cases
        for finding in done.findings:
            line = f"{finding.batch.kind}: {finding.what}"
            found[line] += 1
            if found[line] <= _SHOWN:
                print(_told(line, finding), flush=True)
                finding.files.with_suffix(".txt").write_text(finding.details, encoding="utf-8", errors="replace")
        if (seconds := time.monotonic() - started) - said > 30:
            said = seconds
            print(f"{total:,} cases of {asked.cases:,} in {seconds:,.0f} s, {found.total()} findings", flush=True)
    print(f"{total:,} cases, {found.total()} findings, {time.monotonic() - started:,.0f} s", flush=True)
    for line, count in found.most_common():
        print(f"  {count} x {line}", flush=True)
    return 1 if found else 0


def planned(kinds: list[str], cases: int, size: int, first_seed: int) -> Iterator[Batch]:
    """Batches of each kind by its share, the kinds in turn, so that a run that is cut short has seen all."""
    shares = {name: KINDS[name].share / sum(KINDS[kind].share for kind in kinds) for name in kinds}
    left = {name: int(cases * share) for name, share in shares.items()}
    left[kinds[0]] += cases - sum(left.values())
    for number in itertools.count(first_seed):
        if not any(left.values()):
            return
        for name in kinds:
            part = min(left[name], max(1, round(size * shares[name] * len(kinds))))
            if part:
                left[name] -= part
                yield Batch(name, number, part)


def _told(line: str, finding: Finding) -> str:
    again = f"python -m tests.fuzzing --kinds '{finding.batch.kind}' --again {finding.files}"
    last = finding.details.rstrip().rpartition("\n")[2][:200]
    return f"{line}, seed {finding.batch.seed}, case {finding.case}\n  {last}\n  {again}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="how many")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the first batch; another one gives other cases")
    parser.add_argument("--batch", type=int, default=400, help="cases of a process, on average")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    parser.add_argument("--again", type=Path, help="use the files of one finding again, in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
