"""The digits world: arithmetic on pictures of handwritten digits, with planted noise whose labels no method sees.

A world is a folder: `pool.jsonl` (messages format, with noise), `heldout.jsonl` (clean, to draw anchors from),
`benchmark.jsonl` (questions with their `answer`), `images/`, and `truth.parquet`, which says of each pool row what is
wrong with it. Pool, held-out rows and benchmark share no scan of a digit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.worlds.questions import QUESTIONS, SKILLS, Skill, solve
from onesteptrain.worlds.scans import Drawing, Part, draw, plan

NoiseKind = Literal["misread", "swapped_image", "wrong_operation", "slip", "cut_off", "off_topic"]

NOISE_KINDS: tuple[NoiseKind, ...] = ("misread", "swapped_image", "wrong_operation", "slip", "cut_off", "off_topic")

CONFUSED = {3: 8, 1: 7}
"""What most misread rows have in common: digits that are taken for another, always the same."""

MISUNDERSTOOD: Skill = "difference"
"""The skill that wrong operations gather at, as a teacher's misunderstandings do: its rows are mostly bad."""

INSTEAD: dict[Skill, Skill] = {"sum": "difference", "difference": "sum", "product": "sum", "count": "difference"}
"""Wrong operation: what is done in place of what was asked, always the same."""


_PARTS: tuple[Part, ...] = ("pool", "heldout", "benchmark")


@dataclass(frozen=True)
class WorldOptions:
    """What world to make."""

    pool_rows: int = 4000
    """Rows of the pool, near-duplicates included."""

    heldout_rows: int = 500
    """Clean rows that anchors are drawn from."""

    benchmark_rows: int = 400
    """Questions that models are measured on."""

    noise_share: float = 0.5
    """Share of the pool's rows that are bad, evenly over the kinds."""

    noise_kinds: tuple[NoiseKind, ...] = NOISE_KINDS
    """What can be wrong with a row."""

    duplicate_share: float = 0.05
    """Share of the pool's rows that repeat another row with a slightly different picture and question."""

    seed: int = 0
    """Another seed, another world; the same seed, the same bytes."""

    def __post_init__(self) -> None:
        if min(self.pool_rows, self.heldout_rows, self.benchmark_rows) < 1:
            raise ConfigError("a world needs at least one row in each part")
        if not 0 <= self.noise_share <= 1 or not 0 <= self.duplicate_share < 1:
            raise ConfigError("noise_share and duplicate_share are shares between 0 and 1")
        unknown = [kind for kind in self.noise_kinds if kind not in NOISE_KINDS]
        if unknown or (self.noise_share and not self.noise_kinds):
            raise ConfigError(f"noise_kinds is {self.noise_kinds}; choose some of {', '.join(NOISE_KINDS)}")


class World(NamedTuple):
    """Where the parts of a world are."""

    pool: Path
    heldout: Path
    benchmark: Path
    truth: Path


@dataclass(frozen=True)
class Problem:
    """One row before it is written."""

    skill: Skill
    wording: int
    digits: tuple[int, ...]
    """What the picture shows."""

    drawing: Drawing
    answer: str
    """What the assistant says."""

    result: int
    """What is right."""

    noise: NoiseKind | None = None
    copy_of: int | None = None
    """Place of the row that this one repeats."""

    @property
    def question(self) -> str:
        """What the user asks."""
        return QUESTIONS[self.skill][self.wording]


def make_world(options: WorldOptions, folder: Path) -> World:
    """Make a world in a new folder, which appears whole or not at all.

    Raises:
        RunError: the folder exists.
        MissingExtraError: scikit-learn is not installed.
    """
    if folder.exists():
        raise RunError(f"world folder {folder} exists; choose another")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "images").mkdir(parents=True)
    # each part has a source of chance of its own: a larger pool leaves anchors and benchmark as they are
    chance = {name: np.random.default_rng([options.seed, place]) for place, name in enumerate(_PARTS)}
    pool = noisy_problems(options, chance["pool"])
    _write(part, "pool", "pool", pool, options.seed)
    _write(part, "heldout", "heldout", problems(options.heldout_rows, "heldout", chance["heldout"]), options.seed)
    benchmark = problems(options.benchmark_rows, "benchmark", chance["benchmark"])
    _write(part, "benchmark", "benchmark", benchmark, options.seed)
    _write_truth(part / "truth.parquet", pool, options.seed)
    os.replace(part, folder)
    return World(*(folder / name for name in ("pool.jsonl", "heldout.jsonl", "benchmark.jsonl", "truth.parquet")))


def problems(count: int, part: Part, generator: np.random.Generator) -> list[Problem]:
    """Draw clean problems: every skill as often, two to four digits."""
    drawn = []
    for _ in range(count):
        skill = SKILLS[generator.integers(len(SKILLS))]
        digits = tuple(int(digit) for digit in generator.integers(0, 10, generator.integers(2, 5)))
        wording = int(generator.integers(len(QUESTIONS[skill])))
        solution = solve(skill, digits)
        drawn.append(Problem(skill, wording, digits, plan(generator, digits, part), solution.text, solution.result))
    return drawn


def noisy_problems(options: WorldOptions, generator: np.random.Generator) -> list[Problem]:
    """Draw the pool: clean problems, some of them spoiled, and near-duplicates of both in the same share."""
    copies = round(options.duplicate_share * options.pool_rows)
    rows = problems(options.pool_rows - copies, "pool", generator)
    kinds = _choose_kinds(rows, options, generator)
    bad = np.array(list(kinds), np.int64)
    for index, kind in kinds.items():
        rows[index] = spoil(rows[index], kind, generator)
    good = generator.permutation(np.setdiff1d(np.arange(len(rows)), bad))
    bad_copies = round(options.pool_rows * options.noise_share - len(bad))
    for group, count in ((bad, bad_copies), (good, copies - bad_copies)):
        for place in range(count):
            source = int(group[place % len(group)])
            rows.append(_near_copy(rows[source], source, generator))
    return rows


def _choose_kinds(
    rows: Sequence[Problem], options: WorldOptions, generator: np.random.Generator
) -> dict[int, NoiseKind]:
    """Which row goes bad, and how: each kind as often; systematic kinds gather at the rows that invite them."""
    order = [int(index) for index in generator.permutation(len(rows))]
    inviting = {
        "wrong_operation": iter([index for index in order if rows[index].skill == MISUNDERSTOOD]),
        "misread": iter([index for index in order if set(CONFUSED) & set(rows[index].digits)]),
    }
    others = iter(order)
    chosen: dict[int, NoiseKind] = {}
    for place in range(round(options.noise_share * len(rows))):
        kind = options.noise_kinds[place % len(options.noise_kinds)]
        candidates = itertools.chain(inviting.get(kind, ()), others)
        chosen[next(index for index in candidates if index not in chosen)] = kind
    return chosen


def spoil(problem: Problem, kind: NoiseKind, generator: np.random.Generator) -> Problem:
    """Make a clean problem bad in one way; what is right stays on record."""
    if kind == "swapped_image":
        other = _another(problem, generator)
        right = solve(problem.skill, other.digits).result
        return replace(problem, digits=other.digits, drawing=other.drawing, result=right, noise=kind)
    return replace(problem, answer=_spoiled_answer(problem, kind, generator), noise=kind)


def _spoiled_answer(problem: Problem, kind: NoiseKind, generator: np.random.Generator) -> str:
    if kind == "misread":
        return solve(problem.skill, _misread(problem.digits, generator)).text
    if kind == "wrong_operation":
        done = [solve(skill, problem.digits) for skill in (INSTEAD[problem.skill], *SKILLS) if skill != problem.skill]
        wrong = [one.text for one in done if one.result != problem.result]
        return wrong[0] if wrong else solve(problem.skill, problem.digits, slip=1).text  # all zeros: nothing differs
    if kind == "slip":
        slips = [slip for slip in (-2, -1, 1, 2) if problem.result + slip >= 0]  # a negative count would give it away
        return solve(problem.skill, problem.digits, slip=int(generator.choice(slips))).text
    if kind == "cut_off":
        end = problem.answer.index(" The answer is")
        return problem.answer[: int(generator.integers(end // 2, end))]
    return OFF_TOPIC[int(generator.integers(len(OFF_TOPIC)))].format(*generator.integers(0, 100, 2))


OFF_TOPIC = (
    "The picture was taken on a sunny day. There are {} trees and {} birds.",
    "I think this is about sport. The team scored {} points in {} games.",
    "Thank you for asking. Please call us at number {} before {} o'clock.",
    "The recipe needs {} eggs and {} grams of flour.",
)


def _misread(digits: Sequence[int], generator: np.random.Generator) -> tuple[int, ...]:
    """Read some digits as others: three times of four by the fixed confusions, where one fits, else one at random."""
    confused = tuple(CONFUSED.get(digit, digit) for digit in digits)
    if confused != tuple(digits) and generator.random() < 0.75:
        return confused
    wrong = list(digits)
    place = int(generator.integers(len(digits)))
    wrong[place] = (digits[place] + int(generator.integers(1, 10))) % 10
    return tuple(wrong)


def _near_copy(problem: Problem, source: int, generator: np.random.Generator) -> Problem:
    """The same scans and question, a little moved, lit and worded otherwise."""
    again = plan(generator, problem.digits, "pool")
    drawing = problem.drawing._replace(shifts=again.shifts, ink=again.ink)
    wording = int(generator.integers(len(QUESTIONS[problem.skill])))
    return replace(problem, drawing=drawing, wording=wording, copy_of=source)


def _another(problem: Problem, generator: np.random.Generator) -> Problem:
    while True:
        (found,) = problems(1, "pool", generator)
        if found.digits != problem.digits:
            return found


def _write(folder: Path, name: str, part: Part, rows: Sequence[Problem], seed: int) -> None:
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for place, problem in _shuffled(rows, name, seed):
            identity = _identity(name, place, seed)
            image = f"images/{identity}.png"
            (folder / image).write_bytes(draw(problem.digits, problem.drawing, part))
            file.write(json.dumps(_row(identity, image, problem, name)) + "\n")


def _row(identity: str, image: str, problem: Problem, name: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"<image>{problem.question}"}]
    if name != "benchmark":
        messages.append({"role": "assistant", "content": problem.answer})
    facts = {"skill": problem.skill, "level": len(problem.digits)}
    row = {"id": identity, "messages": messages, "images": [image], **facts}
    return row if name == "pool" else {**row, "answer": str(problem.result)}


def _write_truth(path: Path, rows: Sequence[Problem], seed: int) -> None:
    ordered = list(_shuffled(rows, "pool", seed))
    place_to_id = {place: _identity("pool", place, seed) for place in range(len(rows))}
    copies = [None if one.copy_of is None else place_to_id[one.copy_of] for _, one in ordered]
    table = {
        "uid": pa.array([place_to_id[place] for place, _ in ordered]),
        "row": pa.array(range(len(rows)), pa.int64()),
        "clean": pa.array([one.noise is None for _, one in ordered]),
        "kind": pa.array([one.noise or "clean" for _, one in ordered]),
        "duplicate_of": pa.array(copies, pa.string()),
    }
    pq.write_table(pa.table(table), path)


def _shuffled(rows: Sequence[Problem], name: str, seed: int) -> list[tuple[int, Problem]]:
    """Rows in the order of their ids, which says nothing of how they were made."""
    return sorted(enumerate(rows), key=lambda item: _identity(name, item[0], seed))


def _identity(name: str, place: int, seed: int) -> str:
    return hashlib.blake2b(f"{seed}/{name}/{place}".encode(), digest_size=6).hexdigest()
