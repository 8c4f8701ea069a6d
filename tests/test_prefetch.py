"""Samples that other processes encode ahead: the same tensors, reasons and tables, and nothing left behind."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from onesteptrain.data.pool import ImageRef, Sample, Turn, open_pool
from onesteptrain.errors import ConfigError, RunError, SampleError
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, score_into
from onesteptrain.methods.loss import Loss
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, load_proxy, prefetching, readers
from onesteptrain.scoring.options import ScoringOptions
from tests.building import checkpoint, sample, write_pool

SAMPLES = [sample(row, images=row % 2) for row in range(11)]
BROKEN = Sample("bad", 11, (Turn("user", (ImageRef(b"\x89PNG\r\n", "broken.png"), "?")), Turn("assistant", ("7",))))


@pytest.fixture(scope="module")
def encoder():
    return load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096)).encoder


def test_what_others_encode_is_the_same_and_is_taken_once(encoder, monkeypatch):
    wanted = [encoder.encode(one) for one in SAMPLES]
    own: list[str] = []
    encode = type(encoder)._encode
    monkeypatch.setattr(type(encoder), "_encode", lambda self, one: own.append(one.uid) or encode(self, one))
    with prefetching(encoder, 1) as expect:
        expect(SAMPLES)
        found = [encoder.encode(one) for one in SAMPLES]
        assert own == []
        encoder.encode(SAMPLES[3])  # a second time, and one that is equal but not the same
        encoder.encode(dataclasses.replace(SAMPLES[4]))
        assert own == ["s3", "s4"]
        expect([BROKEN])
        with pytest.raises(SampleError, match=r"broken\.png"):
            encoder.encode(BROKEN)
        assert own == ["s3", "s4"]
        expect(SAMPLES)
    assert encoder.prefetched == {}
    for one, two in zip(wanted, found, strict=True):
        assert one.inputs.keys() == two.inputs.keys()
        assert all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)
        assert all(one.inputs[name].dtype == two.inputs[name].dtype for name in one.inputs)
        assert torch.equal(one.answer, two.answer)


@pytest.mark.parametrize("method", [OneStep(), Loss()])
def test_a_pool_gets_the_same_table_with_readers_and_without(method, tmp_path):
    pool_path = write_pool(tmp_path / "pool", 21)
    (tmp_path / "pool" / "images" / "7.png").write_bytes(b"no picture")
    anchors = write_pool(tmp_path / "anchors", 4, start=100)
    tables = []
    for name, count in (("none", 0), ("one", 1)):
        options = ScoringOptions(shard_rows=8, chunk_rows=3, readers=count)
        request = ScoreRequest(
            open_pool(pool_path),
            method,
            type(method).__name__,
            anchors=anchors,
            proxy=ProxyOptions(str(checkpoint("qwen3_vl"))),
            scoring=options,
        )
        done = score_into(tmp_path / name, request)
        tables.append(done.table.read())
    assert tables[0].equals(tables[1])
    assert tables[0]["reason"].is_valid().to_pylist() == [row == 7 for row in range(21)]


def test_nothing_stays_behind(encoder):
    before = threading.active_count()
    with prefetching(encoder, 1) as expect:
        expect(SAMPLES)
        encoder.encode(SAMPLES[0])  # and none of the others
    deadline = time.monotonic() + 120  # a reader that still imports torch ends after that
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)  # no join: the executor's own thread joins too, and the slower of two is told nothing
    assert not multiprocessing.active_children()
    assert threading.active_count() <= before + 1


def test_a_reader_that_died_is_told_whoever_notices_it_first(encoder):
    with prefetching(encoder, 1) as expect:
        expect(SAMPLES[:1])
        encoder.encode(SAMPLES[0])
        (reader,) = multiprocessing.active_children()
        os.kill(reader.pid, signal.SIGSTOP)  # so that it is at work on what it will not finish
        expect(SAMPLES[1:2])
        reader.kill()
        with pytest.raises(RunError, match="a process that reads images and texts died"):
            encoder.encode(SAMPLES[1])
        with pytest.raises(RunError, match="a process that reads images and texts died"):
            expect(SAMPLES)


def test_readers_by_default_stand_beside_a_gpu_only():
    assert readers(None, torch.device("cpu")) == 0
    assert 1 <= readers(None, torch.device("cuda")) <= 8
    assert readers(3, torch.device("cpu")) == 3
    with pytest.raises(ConfigError, match="readers is -1"):
        ScoringOptions(readers=-1)


def test_a_processor_that_cannot_be_handed_over_is_refused(encoder):
    stuck = dataclasses.replace(encoder, processor=lambda: None)
    with pytest.raises(ConfigError, match="give --set readers=0"), prefetching(stuck, 1):
        pass
