"""Batches that do not fit into memory: nothing is lost, nothing measured twice, and no number changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onesteptrain.errors import AnchorError
from onesteptrain.methods import Setting
from onesteptrain.methods.loss import Loss
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy, prepare
from onesteptrain.proxy.acceleration.plan import without_mask
from onesteptrain.proxy.encoding import sent
from onesteptrain.proxy.memory import MemoryBudget, in_memory, memory_budget, out_of_memory
from onesteptrain.utility import anchoring, measure_anchors
from onesteptrain.utility.answers import represent
from tests.building import checkpoint, sample

SAMPLES = [sample(row, images=row % 2) for row in range(11)]
ANCHORS = [sample(row) for row in range(30, 34)]


@pytest.fixture
def proxy() -> Proxy:
    return load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))


def small_memory(monkeypatch, proxy: Proxy, tokens: int) -> list[tuple[int, int]]:
    """Let passes over more padded tokens fail as CUDA does; gives the shapes of all that were tried."""
    tried: list[tuple[int, int]] = []
    forward = proxy.model.forward

    def limited(*args, **kwargs):
        shape = tuple(kwargs["input_ids"].shape)
        tried.append(shape)
        if shape[0] * shape[1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(proxy.model, "forward", limited)
    return tried


@pytest.mark.parametrize("method", [OneStep(reference_folds=0), OneStep("jvp", reference_folds=0), Loss()])
def test_a_split_batch_gives_the_same_scores_and_the_weights_stay(method, monkeypatch, proxy):
    scorer = method.prepare(Setting(proxy, ANCHORS))
    wanted = [record.score for record in scorer(SAMPLES)]
    before = {name: value.clone() for name, value in proxy.model.state_dict().items()}
    longest = max(proxy.encoder.encode(one).tokens for one in SAMPLES)
    tried = small_memory(monkeypatch, proxy, 2 * longest)
    found = [record.score for record in scorer(SAMPLES)]
    # padded otherwise: float32 sums in another order, and central differences keep 3 to 4 digits
    np.testing.assert_allclose(found, wanted, rtol=2e-2)
    assert all(torch.equal(before[name], value) for name, value in proxy.model.state_dict().items())
    assert any(rows * length > 2 * longest for rows, length in tried)


def test_what_fits_is_remembered(monkeypatch, proxy):
    scorer = Loss().prepare(Setting(proxy, ANCHORS))
    longest = max(proxy.encoder.encode(one).tokens for one in SAMPLES)
    tried = small_memory(monkeypatch, proxy, 2 * longest)
    scorer(SAMPLES)
    assert proxy.memory.tokens < proxy.memory.most_tokens
    tried.clear()
    scorer(SAMPLES)
    assert len(tried) > 1
    assert all(rows == 1 or rows * length <= proxy.memory.tokens for rows, length in tried)
    assert all(rows * length <= 2 * longest for rows, length in tried)


@pytest.mark.parametrize("method", [OneStep(reference_folds=0), Loss()])
def test_a_sample_that_does_not_fit_alone_has_a_reason_and_the_others_their_score(method, monkeypatch, proxy):
    scorer = method.prepare(Setting(proxy, ANCHORS))
    wanted = [record.score for record in scorer(SAMPLES)]
    lengths = [proxy.encoder.encode(one).tokens for one in SAMPLES]
    small_memory(monkeypatch, proxy, max(lengths) - 1)
    records = scorer(SAMPLES)
    for record, score, length in zip(records, wanted, lengths, strict=True):
        if length == max(lengths):
            assert record.reason is not None
        else:
            assert record.score == pytest.approx(score, rel=2e-2)
    assert any(record.reason is not None for record in records)


def nothing(_) -> None:
    """What stands for a sample that does not fit."""


def test_every_sample_is_measured_once_although_batches_break(proxy):
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    counts: Counter[int] = Counter()

    def work(batches):
        if sum(map(len, batches)) > 3:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)")
        counts.update(id(one) for batch in batches for one in batch)
        return batches

    found = in_memory(proxy.memory, encoded, work, nothing, batch_size=8, at_once=2)
    assert all(one is given for one, given in zip(found, encoded, strict=True))
    assert counts == Counter(dict.fromkeys(map(id, encoded), 1))


def test_how_many_batches_fit_at_once_is_remembered(proxy):
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    sizes: list[int] = []

    def work(batches):
        sizes.append(len(batches))
        if len(batches) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batches

    for _ in range(2):
        found = in_memory(proxy.memory, encoded, work, nothing, batch_size=1, at_once=8)
        assert all(one is given for one, given in zip(found, encoded, strict=True))
    assert [size for size in sizes if size > 2] == [8, 4]  # once each, although there are two groups and two calls
    assert proxy.memory.tokens == proxy.memory.most_tokens


def test_one_batch_that_does_not_fit_says_nothing_of_several(proxy):
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]

    def work(batches):
        if max(map(len, batches)) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batches

    assert None not in in_memory(proxy.memory, encoded, work, nothing, batch_size=4, at_once=2)
    assert proxy.memory.together is None


@pytest.mark.parametrize("keep", [False, True])
def test_anchors_that_do_not_fit_into_one_pass_are_split(keep, monkeypatch, proxy):
    encoded = [proxy.encoder.encode(one) for one in ANCHORS]

    def measured():
        return measure_anchors(proxy, {"": encoded}, preconditioner={}, batch_size=None, keep=keep)[0]

    whole, longest = measured(), max(one.tokens for one in encoded)
    tried = small_memory(monkeypatch, proxy, 2 * longest)
    parts = measured()
    assert (len(whole.batches), len(parts.batches)) == ((1, 2) if keep else (0, 0))
    assert any(rows * length > 2 * longest for rows, length in tried)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)  # float32 sums in another order, as below
    for name, value in whole.direction.items():
        torch.testing.assert_close(parts.direction[name], value, rtol=1e-3, atol=1e-5)
    assert proxy.memory.tokens == proxy.memory.most_tokens  # forward passes may hold more than those that go back
    assert all(parameter.grad is None for parameter in proxy.parameters.values())


def test_anchors_that_do_not_fit_together_with_what_is_kept_of_them_are_computed_anew(monkeypatch):
    proxy = load_proxy(checkpoint("qwen3_vl"), ScopeOptions("last", last_layers=1), LoadOptions(max_tokens=4096))
    encoded = [proxy.encoder.encode(one) for one in ANCHORS]
    given = {"preconditioner": {}, "batch_size": None, "keep": True}
    (whole,) = measure_anchors(proxy, {"": encoded}, **given)
    forward, held = proxy.model.forward, []

    def noted(*given, **named):
        held.append(prepare(*given, **named))
        return held[-1]

    def limited(*args, **kwargs):
        output = forward(*args, **kwargs)
        if sum(len(one.answer) for one in held if one.plan.kept) > 2:  # whatever the batches, more anchors do not fit
            held.clear()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return output

    monkeypatch.setattr(anchoring, "prepare", noted)
    monkeypatch.setattr(proxy.model, "forward", limited)
    (found,) = measure_anchors(proxy, {"": encoded}, **given)
    assert [one.plan.kept for one in whole.batches] != [None]
    assert [one.plan.kept for one in found.batches] == [None]
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)  # float32 sums in another order
    for name, value in whole.direction.items():
        torch.testing.assert_close(found.direction[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("error", "smaller"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.OutOfMemoryError("HIP out of memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_which_errors_smaller_work_may_avoid(error, smaller):
    assert out_of_memory(error) is smaller


class Noted:
    """A tensor on the CPU that notes what is done with it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.done: list[tuple[object, ...]] = []

    def pin_memory(self) -> Noted:
        self.done.append(("pinned",))
        return self

    def to(self, device, dtype=None, *, non_blocking=False) -> Noted:
        self.done.append((device.type, dtype, non_blocking))
        return self


@pytest.mark.parametrize(
    ("device", "done"),
    [
        ("cpu", [("cpu", None, False)]),
        ("mps", [("mps", None, False)]),  # it may read what has been given back by then
        ("cuda", [("pinned",), ("cuda", None, True)]),
    ],
)
def test_nobody_waits_for_copies_of_pinned_memory_alone(device, done):
    value = Noted()
    sent(value, torch.device(device))
    assert value.done == done


def test_an_anchor_that_does_not_fit_alone_is_refused(monkeypatch, proxy):
    small_memory(monkeypatch, proxy, 10)
    with pytest.raises(AnchorError, match=r"an anchor does not fit into memory: they have up to \d+ tokens"):
        OneStep().prepare(Setting(proxy, ANCHORS))


def test_a_representation_for_which_there_is_no_memory_has_a_reason(monkeypatch, proxy):
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    wanted, longest = represent(proxy, encoded, batch_size=4), max(one.tokens for one in encoded)
    small_memory(monkeypatch, proxy, longest - 1)
    for one, before, found in zip(encoded, wanted, represent(proxy, encoded, batch_size=4), strict=True):
        if one.tokens == longest:
            assert "do not fit into memory" in found
        else:
            torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-5)  # padded otherwise


def test_other_errors_are_not_swallowed(proxy):
    def work(batches):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_memory(proxy.memory, [proxy.encoder.encode(SAMPLES[0])], work, nothing, batch_size=2)


class Waits(TorchDispatchMode):
    """Counts operations whose result the host has to wait for, had the tensors been on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).split(".")[1]
        if name in ("nonzero", "_local_scalar_dense", "bincount", "masked_select", "_unique2", "equal"):
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


def waits_of(work) -> Counter[str]:
    with torch.no_grad(), Waits() as waits:
        work()
    return waits.count


@pytest.mark.parametrize("architecture", ["internvl", "qwen3_vl", "llava"])
def test_the_host_waits_for_nothing_in_a_pass_but_what_the_model_itself_asks_for(architecture):
    proxy = load_proxy(checkpoint(architecture), options=LoadOptions(max_tokens=4096))
    batch = prepare(proxy, [proxy.encoder.encode(one) for one in SAMPLES])
    positions = batch.plan.positions
    numbered = {} if positions is None else {"position_ids": positions}
    own = waits_of(lambda: proxy.model(**without_mask(batch.inputs), **numbered, use_cache=False))
    assert waits_of(lambda: proxy.token_losses(batch).means()) == own
    # the mode sees what it is to see: looking for the answers in each pass would be noticed
    assert waits_of(lambda: proxy.token_losses(batch._replace(located=None)).means()) != own


def test_without_a_batch_size_a_device_takes_what_the_tokens_allow_and_a_cpu_sixteen_rows(proxy):
    encoded = [proxy.encoder.encode(sample(row)) for row in range(40)]
    length = max(one.tokens for one in encoded)

    def shapes(budget: MemoryBudget) -> list[int]:
        taken = []
        in_memory(budget, encoded, lambda batches: taken.extend(map(len, batches)) or batches, nothing, batch_size=None)
        return taken

    assert shapes(memory_budget(torch.device("cpu"), 16 * length)) == [16, 16, 8]
    assert proxy.memory.most_tokens == min(16384, 1024 * torch.get_num_threads())  # as the options say
    assert shapes(memory_budget(torch.device("meta"), None)) == [40]  # anything but a CPU
    few = shapes(memory_budget(torch.device("meta"), 10 * length))
    assert max(few) < 40
    assert sum(few) == 40
