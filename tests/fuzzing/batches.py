"""Cases in batches, each in a process of its own, so that one that dies, hangs or fills the memory is found."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzzing.cases import KINDS, Files, Kind, run

SECONDS, MEMORY = 5.0, 2**30
"""What a case may take: of the processor, and beyond what its process had."""

_PATIENCE = 120.0
"""Seconds in which a case must end one way or the other, on however busy a machine."""

_CONTEXT = multiprocessing.get_context("fork")


class Batch(NamedTuple):
    """Cases that follow from a kind and a seed."""

    kind: str
    seed: int
    cases: int


class Finding(NamedTuple):
    """What a case did that none may do."""

    batch: Batch
    case: int
    """Its number in the batch, from 0."""

    what: str
    """A line that is the same for cases that fail alike."""

    details: str
    files: Path
    """A copy of the case."""


class Done(NamedTuple):
    """What came of a batch."""

    batch: Batch
    cases: int
    findings: list[Finding]


def run_batches(batches: Iterable[Batch], keep: Path, workers: int = 1, kinds: Any = KINDS) -> Iterator[Done]:
    """Run batches, so many at a time; what they find is copied into the folder `keep`."""
    waiting, running = iter(batches), []
    while True:
        while len(running) < workers and (batch := next(waiting, None)) is not None:
            running.append(_Child(batch, keep, kinds))
        if not running:
            return
        done = [child for child in running if child.is_done()]
        for child in done:
            running.remove(child)
            yield child.result()
        if not done:
            time.sleep(0.02)


class _Child:
    """A process that works on a batch, and what it has said so far."""

    def __init__(self, batch: Batch, keep: Path, kinds: Any) -> None:
        self.batch, self._keep = batch, keep
        self._scratch = Path(tempfile.mkdtemp(prefix="ost-fuzz-"))
        self._case = _CONTEXT.Value("q", -1)
        self._ours, theirs = _CONTEXT.Pipe(duplex=False)
        self._findings: list[Finding] = []
        self._process = _CONTEXT.Process(
            target=_work, args=(batch, kinds[batch.kind], self._scratch, keep, self._case, theirs)
        )
        self._process.start()
        theirs.close()
        self._seen, self._since = -1, time.monotonic()

    def is_done(self) -> bool:
        with contextlib.suppress(EOFError):
            while self._ours.poll():
                self._findings.append(self._ours.recv())
        if not self._process.is_alive():
            return True
        if self._case.value != self._seen:
            self._seen, self._since = self._case.value, time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE:
            self._process.kill()
            self._process.join()
        return False

    def result(self) -> Done:
        self._process.join()
        code, cases = self._process.exitcode, int(self._case.value) + 1
        if code:
            name = signal.Signals(-code).name if code < 0 else f"status {code}"
            files = kept(self._scratch, self._keep, self.batch, cases - 1)
            self._findings.append(Finding(self.batch, cases - 1, f"the process ended by {name}", "", files))
        shutil.rmtree(self._scratch, ignore_errors=True)
        return Done(self.batch, cases, self._findings)


def kept(folder: Path, keep: Path, batch: Batch, case: int) -> Path:
    """Copy the files of a case to where they stay."""
    target = keep / f"{batch.kind.replace(' ', '-')}-{batch.seed}-{case}"
    if not target.exists() and folder.exists():
        shutil.copytree(folder, target, symlinks=True)
    return target


def _work(batch: Batch, kind: Kind, scratch: Path, keep: Path, case: Any, findings: Any) -> None:
    """All cases of a batch, in a process of its own."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    faulthandler.disable()  # pytest's would tell of a crash that is looked for
    signal.signal(signal.SIGPROF, _too_long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 6 * MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def one(files: Files) -> None:
        case.value += 1
        write(files, scratch)
        found = _finding(lambda: run(kind, scratch))
        if (used := 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)) > MEMORY:
            found = ("takes more than 1 GB", f"{used:,} bytes")
        if found is not None:
            write(files, scratch)
            findings.send(Finding(batch, case.value, *found, kept(scratch, keep, batch, case.value)))
        if used > MEMORY:
            findings.close()
            os._exit(0)  # it would be said of all cases after this one

    if (own := _finding(lambda: drawn(batch, kind, one), limited=False)) is not None:
        findings.send(Finding(batch, case.value, f"no case can be made: {own[0]}", own[1], scratch))
    findings.close()
    os._exit(0)


def drawn(batch: Batch, kind: Kind, use: Callable[[Files], None]) -> None:
    """Give the cases of a batch to a function, in the order that its seed sets."""
    quiet = settings(
        max_examples=batch.cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(batch.seed)
    @quiet
    @given(kind.files)
    def each(files: Files) -> None:
        use(files)

    each()


def write(files: Files, folder: Path) -> None:
    """Put the files of a case into a folder, in the place of all that is there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _finding(use: Callable[[], None], *, limited: bool = True) -> tuple[str, str] | None:
    """What a case did wrong, as a line and in full."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS if limited else 0)
    try:
        use()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
        places = traceback.extract_tb(error.__traceback__)
        ours = [place for place in places if "onesteptrain" in place.filename] or list(places)
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return f"{type(error).__name__} at {where}", "".join(traceback.format_exception(error))[-6000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


class TooLongError(BaseException):
    """A case takes more than 5 seconds of the processor."""


def _too_long(*_: object) -> None:
    raise TooLongError


def _address_space() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0
