"""Compiled blocks against the same model as it is."""

from __future__ import annotations

import numpy as np
import torch

from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from tests.building import checkpoint, sample

SAMPLES = [sample(row, images=1) for row in range(6)]
ANCHORS = [sample(row, images=1) for row in range(30, 34)]


def test_compiled_blocks_give_the_same_scores(monkeypatch, caplog):
    """Scope last, so that layers below are replayed beside compiled ones; and forward mode, which runs without them.

    Blocks are captured as for any backend and run by the one that takes no minutes to compile.
    """
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **named: compile_module(self, backend="aot_eager"))
    plain, compiled = (
        load_proxy(checkpoint("internvl"), ScopeOptions("last", last_layers=1), LoadOptions(compile=choice))
        for choice in (False, True)
    )
    ran = []
    for block in compiled.model.model.language_model.layers:
        monkeypatch.setattr(block, "_compiled_call_impl", noting(block._compiled_call_impl, ran))
    for estimator, tolerance in (("fd", 2e-2), ("jvp", 1e-4)):  # float32; fd is a difference
        scores = [
            [one.score for one in OneStep(estimator, reference_folds=0).prepare(Setting(proxy, ANCHORS))(SAMPLES)]
            for proxy in (plain, compiled)
        ]
        largest = np.abs(scores[0]).max()
        np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=tolerance * largest)
        assert ran or estimator == "jvp"
        ran.clear()
    assert "recompile_limit" not in caplog.text  # past it, blocks run uncompiled


def noting(call, ran):
    def run(*given, **named):
        ran.append(1)
        return call(*given, **named)

    return run
