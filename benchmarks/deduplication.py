"""How long deduplication takes, and what it finds: deduplication.py [--rows 100000] or --copies-of POOL.

The first makes a pool in which one row in a hundred repeats another: its picture is rescaled and encoded anew as a
poorer JPEG, and its question has a word more. The second plants copies of each kind among the rows of a pool with one
picture a row, such as TabMWP's or MATH-Vision's.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from onesteptrain.data.deduplication import FinalAnswers, guard
from onesteptrain.data.images import load_image
from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.evaluation.answers import extract_answer, same_answer

FINALS = FinalAnswers(extract_answer, same_answer)

NAMES = ("Regan", "Kari", "Mabel", "Ada", "Noor", "Ivo", "Lena", "Omar", "Pia", "Tom")
THINGS = ("apples", "hoops", "ties", "trees", "cards", "cups", "bricks", "shells")
QUESTIONS = (
    "How many {thing} did {name} count in row {a} of the picture?",
    "What is the sum of the {thing} in columns {a} and {b}?",
    "{name} sells {a} {thing} a day. How many {thing} are left after {b} days?",
    "Which of the {thing} in the figure is larger than {a}?",
    "Describe the picture of the {thing}.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--copies-of", type=Path)
    options = parser.parse_args()
    if options.copies_of is not None:
        find_copies(options.copies_of)
        return
    count = options.rows
    with tempfile.TemporaryDirectory() as scratch:
        planted = make_pool(Path(scratch), count)
        began, spent = time.perf_counter(), time.process_time()
        findings = guard(open_pool(Path(scratch) / "pool.jsonl"), finals=FINALS)
        seconds, processor = time.perf_counter() - began, time.process_time() - spent
    found = {one.place.row for one in findings.clusters.duplicates}
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count} rows: {seconds:.0f} s, {processor:.0f} s of processor time, {memory / 1e9:.2f} GB at most")
    print(f"{len(planted & found)} of {len(planted)} planted found, {len(found - planted)} others reported")


def make_pool(folder: Path, count: int) -> set[int]:
    """Write the pool; rows that repeat another."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    originals: list[tuple[int, str]] = []
    planted: set[int] = set()
    with (folder / "pool.jsonl").open("w", encoding="utf-8") as file:
        for row in range(count):
            if row >= 100 and generator.random() < 0.01:
                source, question = originals[int(generator.integers(len(originals)))]
                picture = Image.open(folder / "images" / f"{source}.jpg").resize((80, 80))
                planted.add(row)
                write(file, folder, row, (picture, 70), question + " Explain.", source % 7)
                continue
            noise = generator.integers(0, 256, (8, 8, 3), np.uint8)
            picture = Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)
            numbers = {"a": generator.integers(100), "b": generator.integers(100)}
            words = {"thing": THINGS[generator.integers(8)], "name": NAMES[generator.integers(10)]}
            question = QUESTIONS[generator.integers(5)].format(**words, **numbers)
            originals.append((row, question))
            write(file, folder, row, (picture, 90), question, row % 7)
    return planted


def write(
    file: io.TextIOBase, folder: Path, row: int, picture: tuple[Image.Image, int], question: str, answer: int
) -> None:
    """One row and its picture."""
    image, quality = picture
    image.save(folder / "images" / f"{row}.jpg", "JPEG", quality=quality)
    messages = [
        {"role": "user", "content": f"<image>{question}"},
        {"role": "assistant", "content": f"The answer is {answer}."},
    ]
    file.write(json.dumps({"id": str(row), "messages": messages, "images": [f"images/{row}.jpg"]}) + "\n")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "double size": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "10 % darker": lambda image: image.point(lambda value: int(0.9 * value)),
    "cropped by 2 %": lambda image: image.crop(
        (image.width // 50, image.height // 50, image.width - image.width // 50, image.height - image.height // 50)
    ),
}

WORDINGS: dict[str, Callable[[str], str]] = {
    "no punctuation": lambda text: re.sub(r"[,?!]|\.(?!\d)", "", text),
    "a word left out": lambda text: " ".join(text.split()[:-2] + text.split()[-1:]),
    "a sentence added": lambda text: text + " Answer with a single number or letter.",
}


def find_copies(source: Path) -> None:
    """Share of planted copies that come into the cluster of their row, by kind."""
    rows = [row for row in open_pool(source) if isinstance(row, Sample) and len(row.images) == 1]
    pictures = [load_image(row.images[0]) for row in rows]
    planted: list[tuple[int, str]] = [(place, "") for place in range(len(rows))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        with (folder / "pool.jsonl").open("w", encoding="utf-8") as file:
            for place, row in enumerate(rows):
                write(file, folder, place, (pictures[place], 95), row.turns[0].text, place)
            for name, quality, image, text in _kinds():
                for place in np.random.default_rng(0).permutation(len(rows))[:100].tolist():
                    copy = image(pictures[place]), quality
                    write(file, folder, len(planted), copy, text(rows[place].turns[0].text), place)
                    planted.append((place, name))
        findings = guard(open_pool(folder / "pool.jsonl"), finals=FINALS).clusters
    clusters = {one.place.row: one.cluster for one in findings.duplicates}
    clusters |= {place.row: number for number, place in enumerate(findings.kept)}
    seen = Counter(name for _, name in planted[len(rows) :])
    found = Counter(
        name for row, (place, name) in enumerate(planted) if name and clusters.get(row, -1) == clusters.get(place, -2)
    )
    for name, count in seen.items():
        print(f"{name}: {found[name]} of {count}")
    joined = sum(planted[one.place.row][0] != planted[one.duplicate_of.row][0] for one in findings.duplicates)
    print(f"{joined} rows joined with another original or its copy")


def _kinds() -> Iterator[tuple[str, int, Callable[[Image.Image], Image.Image], Callable[[str], str]]]:
    yield "JPEG 50", 50, COPIES["as it is"], str
    for name, image in list(COPIES.items())[1:]:
        yield name, 95, image, str
    for name, text in WORDINGS.items():
        yield name, 95, COPIES["as it is"], text


if __name__ == "__main__":
    main()
