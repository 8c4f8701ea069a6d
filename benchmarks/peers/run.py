"""onesteptrain against other systems that score rows by gradients: rows a second and agreement with brute force.

run.py --venv DIR makes a virtual environment with the peers (once), then measures. Every contender runs in a process of
its own on one thread, on the same weights, rows, batch size and parameters; one of them is at work at a time. A round
asks each for one measurement, in an order that moves on from round to round; the first round is not counted. The
figures are medians over the rounds, in seconds of processor time, so that other work on the machine counts little. The
ratios are taken within a round. The driver needs the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = ("text", "text, larger", "internvl", "qwen3_vl", "qwen3_vl, language")
OURS = ("ours, fd", "ours, jvp", "ours, gradient")
PEERS = ("autograd loop", "kronfluence", "bergson", "bergson, forward mode", "dattri-llm", "dattri", "LESS, gradients")
COMPILED = ("ours, fd, compiled", "dattri-llm, compiled")
"""Where blocks of the model are compiled: in the cases of vision-language models."""

PROJECTED = "LESS, projected"
"""Takes its time: in the smallest case alone."""

HOOKS = ("kronfluence", "bergson", "dattri-llm")
"""Peers that batch rows and take a gradient of each by hooks: their cost grows little with the number of groups."""

AGREES = 0.99
"""A peer counts as a rival if its scores correlate so well with brute force."""


class Contender(NamedTuple):
    """A route with what it is asked for."""

    route: str
    groups: int
    rows: int
    """How many rows, 0 for all."""


Measured = Mapping[Contender, Sequence[dict[str, Any]]]
"""One record a counted round; a single record with an error where the contender cannot run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="virtual environment; made where it is not there")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 4, 16, 64], help="of the search for the crossover")
    parser.add_argument("--sweep-rows", type=int, default=32, help="rows of the search for the crossover")
    parser.add_argument("--sweep-repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results.json")
    options = parser.parse_args()
    python = ensure_venv(options.venv)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in options.cases:
            more = COMPILED if not case.startswith("text") else (PROJECTED,) if case == "text" else ()
            names = [*OURS, *PEERS, *more]
            contenders = [Contender(name, 1, 0) for name in names]
            measured = compare(python, case, Path(scratch) / "one", contenders, options.repeats)
            records += publish(case, measured)
            save(records, options.out)
        if options.groups:
            rival = fastest(records, "text") or "bergson"
            contenders = [Contender(name, k, options.sweep_rows) for k in options.groups for name in (*OURS, rival)]
            measured = compare(python, "text", Path(scratch) / "many", contenders, options.sweep_repeats)
            records += publish_sweep(measured, rival, options.groups)
            save(records, options.out)


def save(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write what has been measured so far, in place of earlier figures of the same names; the others stay."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = {(one["benchmark"], one["subject"]) for one in records}
    kept = [one for one in earlier if (one["benchmark"], one["subject"]) not in new]
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps([*kept, *records], indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def ensure_venv(folder: Path) -> Path:
    """Make the environment unless a former call has finished it, and give its interpreter."""
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pinned = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([*pip, *pinned, "torch", "torchvision"], check=True)
        subprocess.run([*pip, *pinned, "-e", f"{ROOT}[worlds]"], check=True)
        subprocess.run([*pip, "--no-deps", "-r", str(HERE / "requirements.txt")], check=True)
        ready.touch()
    return python


def compare(python: Path, case: str, folder: Path, contenders: Sequence[Contender], repeats: int) -> Measured:
    """Measure some contenders in rounds."""
    place = folder / case.replace(", ", "-")
    subprocess.run([*worker(python), "build", case, str(place)], check=True, env=environment(), stderr=subprocess.PIPE)
    for groups in dict.fromkeys(contender.groups for contender in contenders):
        with process(python, Contender("reference", groups, 0), case, place) as reference:
            answer = ask(reference)
            if "error" in answer:
                raise RuntimeError(f"{case}: the reference cannot run: {answer['error']}")
    measured: dict[Contender, list[dict[str, Any]]] = {contender: [] for contender in contenders}
    with contextlib.ExitStack() as stack:
        workers = {one: stack.enter_context(process(python, one, case, place)) for one in contenders}
        for number in range(1 + repeats):
            start = number % len(contenders)
            for contender in [*contenders[start:], *contenders[:start]]:
                if any("error" in record for record in measured[contender]):
                    continue
                answer = ask(workers[contender])
                print(f"{case}, round {number}: {contender.route}, {contender.groups}: {answer}", file=sys.stderr)
                if number or "error" in answer:
                    measured[contender].append(answer)
    return measured


@contextlib.contextmanager
def process(python: Path, contender: Contender, case: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A contender's process, which waits until it is asked."""
    command = [*worker(python), "run", contender.route, case, str(place), str(contender.groups), str(contender.rows)]
    with (
        tempfile.TemporaryFile() as noise,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True, env=environment()
        ) as running,
    ):
        try:
            yield running
        finally:
            running.communicate()


def ask(running: subprocess.Popen[str]) -> dict[str, Any]:
    """One measurement; what crashes has an error for a result, what is ended from outside has none.

    Raises:
        RuntimeError: somebody else has ended the process.
    """
    if running.stdin is None or running.stdout is None:
        raise RuntimeError("the process has no pipes")
    with contextlib.suppress(BrokenPipeError):
        running.stdin.write("\n")
        running.stdin.flush()
        if line := running.stdout.readline():
            return json.loads(line)
    code = running.wait()
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        raise RuntimeError(f"a contender was ended from outside by signal {-code}; run again")
    return {"error": f"the process ended with code {code}"}


def worker(python: Path) -> list[str]:
    return [str(python), str(HERE / "worker.py")]


def environment() -> dict[str, str]:
    """One thread, nothing from the network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


def publish(case: str, measured: Measured) -> list[dict[str, Any]]:
    """Print the table of a case and give its records."""
    ours = measured[Contender(OURS[0], 1, 0)]
    print(f"\n{case}: one anchor group\n")
    print("| contender | rows/s | fd is as fast, times | set-up, s | correlation | relative error |")
    print("| --- | --- | --- | --- | --- | --- |")
    records = []
    for contender, rounds in measured.items():
        if "error" in rounds[-1]:
            print(f"| {contender.route} | cannot run: {rounds[-1]['error']} | | | | |")
            records.append(record(case, contender.route, value=None, unit="rows/s", error=rounds[-1]["error"]))
            continue
        speed, times = rate(rounds), ratio(ours, rounds)
        setup, correlation, error = (middle(rounds, key) for key in ("setup", "correlation", "relative_error"))
        print(f"| {contender.route} | {speed:.1f} | {times:.2f} | {setup:.2f} | {correlation:.5f} | {error:.1e} |")
        records += [
            record(case, contender.route, value=speed, unit="rows/s"),
            record(case, f"{contender.route}: rows/s of ours, fd, over it", ratio=times, unit="times"),
            record(case, f"{contender.route}: set-up", value=setup, unit="s"),
            record(case, f"{contender.route}: correlation with brute force", value=correlation, unit="Pearson"),
            record(case, f"{contender.route}: error against brute force", value=error, unit="relative"),
        ]
    rivals = [one for one, rounds in measured.items() if not one.route.startswith("ours") and agrees(rounds)]
    best = min(rivals, key=lambda one: seconds(measured[one]))
    times = ratio(ours, measured[best])
    print(f"\nThe fastest peer that agrees with brute force is {best.route}; ours, fd, is {times:.2f} times as fast.")
    records.append(record(case, "ours, fd, over the fastest peer", ratio=times, unit="times", peer=best.route))
    compiled = measured.get(Contender(COMPILED[0], 1, 0))
    if compiled and "error" not in compiled[-1]:
        times = ratio(compiled, measured[best])
        print(f"Compiled it is {times:.2f} times as fast.")
        records.append(
            record(case, f"{COMPILED[0]}, over the fastest peer", ratio=times, unit="times", peer=best.route)
        )
    sys.stdout.flush()
    return records


def publish_sweep(measured: Measured, rival: str, groups: Sequence[int]) -> list[dict[str, Any]]:
    """Print scoring time by the number of anchor groups, and where the rival overtakes."""
    rows = next(iter(measured)).rows
    print(f"\ntext: anchor groups, {rows} rows, rows/s\n")
    print("| contender | " + " | ".join(str(count) for count in groups) + " |")
    print("| --- |" + " --- |" * len(groups))
    records = []
    speeds: dict[str, list[float]] = {}
    for name in (*OURS, rival):
        speeds[name] = [rate(measured[Contender(name, count, rows)]) for count in groups]
        print(f"| {name} | " + " | ".join(f"{speed:.1f}" for speed in speeds[name]) + " |")
        for count, speed in zip(groups, speeds[name], strict=True):
            records.append(record("text", f"{name}, {count} anchor groups", value=speed, unit="rows/s"))
    for name in OURS:
        place = crossover(groups, speeds[name], speeds[rival])
        ahead = speeds[name][0] > speeds[rival][0]
        where = (
            f"at {place:.1f} groups" if place else "not within these numbers" if ahead else "from the first number on"
        )
        print(f"\n{rival} overtakes {name}: {where}.")
        records.append(
            record("text", f"groups at which hooks overtake {name}", value=place, unit="anchor groups", peer=rival)
        )
    sys.stdout.flush()
    return records


def crossover(groups: Sequence[int], mine: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Where two costs a row, straight lines between the measured numbers of groups, meet; None if they do not."""
    gaps = [1 / a - 1 / b for a, b in zip(mine, theirs, strict=True)]
    for place in range(1, len(groups)):
        below, above = gaps[place - 1], gaps[place]
        if below <= 0 < above:
            return groups[place - 1] + (groups[place] - groups[place - 1]) * below / (below - above)
    return None


def fastest(records: Sequence[Mapping[str, Any]], case: str) -> str | None:
    """The fastest hook-based peer of a case."""
    speeds = {
        one["subject"]: one["value"]
        for one in records
        if one["benchmark"] == f"peers: {case}" and one["subject"] in HOOKS and one["value"] is not None
    }
    return max(speeds, key=speeds.__getitem__) if speeds else None


def agrees(rounds: Sequence[Mapping[str, Any]]) -> bool:
    return "error" not in rounds[-1] and middle(rounds, "correlation") > AGREES


def seconds(rounds: Sequence[Mapping[str, Any]]) -> float:
    """Of one row."""
    return statistics.median(one["scoring"] / one["rows"] for one in rounds)


def rate(rounds: Sequence[Mapping[str, Any]]) -> float:
    return 1 / seconds(rounds)


def ratio(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float:
    """How many times as fast mine are; both of one round each."""
    pairs = zip(mine, theirs, strict=True)
    return statistics.median((b["scoring"] / b["rows"]) / (a["scoring"] / a["rows"]) for a, b in pairs)


def middle(rounds: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


def record(case: str, subject: str, **figure: Any) -> dict[str, Any]:
    command = "python benchmarks/peers/run.py --venv DIR"
    return {"benchmark": f"peers: {case}", "subject": subject, **figure, "command": command}


if __name__ == "__main__":
    main()
