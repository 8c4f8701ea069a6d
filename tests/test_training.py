"""Training a target: the folder that comes out holds the model that was trained."""

import json

import pytest
import torch
from safetensors.torch import load_file

from onesteptrain.data.pool import Unreadable
from onesteptrain.errors import PoolError, RunError
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.training import FinetuneOptions, TrainOptions, finetune, train


def options(scope="all", **more):
    return TrainOptions(FinetuneOptions(batch_size=2, learning_rate=1e-3, **more), ScopeOptions(scope))


def rows_of(make_sample, count):
    return [make_sample(row, "What is it?", f"The answer is {row}.", images=row % 2) for row in range(count)]


@pytest.mark.parametrize("scope", ["all", "lora"])
def test_the_checkpoint_that_is_written_is_the_model_that_fine_tuning_gives(
    tiny_checkpoint, make_sample, tmp_path, scope
):
    samples = [*rows_of(make_sample, 4), Unreadable("bad", 4, "broken")]
    result = train(tiny_checkpoint, samples, options(scope, steps=3), tmp_path / "target")
    oracle = load_proxy(tiny_checkpoint, ScopeOptions(scope))
    encoded = [oracle.encoder.encode(sample) for sample in samples[:4]]
    expected = finetune(oracle, encoded, options(scope, steps=3).finetune)
    read = load_proxy(result.checkpoint, ScopeOptions(scope))
    with torch.no_grad():
        assert torch.equal(oracle.token_losses(oracle.batch(encoded)).loss, read.token_losses(read.batch(encoded)).loss)
    assert (result.losses, result.steps, result.tokens) == (expected.losses, 3, expected.tokens)
    facts = json.loads((result.checkpoint / "train.json").read_text())
    assert (facts["rows"], facts["refused"], facts["reasons"]) == (4, 1, [["broken", 1]])


def test_under_protocol_b_a_subset_gets_the_steps_of_the_pool_and_under_a_its_share(
    tiny_checkpoint, make_sample, tmp_path
):
    steps = {
        (rows, name): train(
            tiny_checkpoint, rows_of(make_sample, rows), options("lora", **protocol), tmp_path / f"{rows}{name}"
        ).steps
        for rows in (8, 2)
        for name, protocol in {"A": {"epochs": 1.0}, "B": {"steps": 4}}.items()
    }
    assert steps == {(8, "A"): 4, (2, "A"): 1, (8, "B"): 4, (2, "B"): 4}


def test_the_weights_are_written_in_the_type_they_were_trained_in(tiny_checkpoint, make_sample, tmp_path):
    chosen = TrainOptions(FinetuneOptions(steps=1, batch_size=2), load=LoadOptions(dtype="bfloat16"))
    result = train(tiny_checkpoint, rows_of(make_sample, 2), chosen, tmp_path / "target")
    assert load_proxy(result.checkpoint).dtype == torch.float32  # read as auto: scoring wants float32
    assert json.loads((result.checkpoint / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_folder_of_somebody_elses_and_an_unusable_subset_are_refused_and_nothing_is_touched(
    tiny_checkpoint, make_sample, tmp_path
):
    with pytest.raises(PoolError, match="none of the 1 rows can be trained on"):
        train(tiny_checkpoint, [Unreadable("bad", 0, "broken")], options(), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists"):
        train(tiny_checkpoint, rows_of(make_sample, 2), options(), tmp_path / "target", overwrite=True)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["mine.txt"]


def test_a_training_that_was_cut_off_continues_and_ends_with_the_same_weights(tiny_checkpoint, make_sample, tmp_path):
    class CutError(Exception):
        pass

    def cut(step, steps):
        if step == 6:
            raise CutError

    rows, asked = rows_of(make_sample, 4), options("language", steps=10)
    whole = train(tiny_checkpoint, rows, asked, tmp_path / "whole")
    with pytest.raises(CutError):
        train(tiny_checkpoint, rows, asked, tmp_path / "target", progress=cut)
    other = train(tiny_checkpoint, rows, options("language", steps=2), tmp_path / "other")
    steps = []
    resumed = train(tiny_checkpoint, rows, asked, tmp_path / "target", progress=lambda at, _: steps.append(at))
    assert steps == [6, 7, 8, 9, 10]  # five were kept
    assert (resumed.losses, resumed.tokens) == (whole.losses, whole.tokens)
    tensors = [load_file(one.checkpoint / "model.safetensors") for one in (whole, resumed)]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "target", "whole"]
    assert other.steps == 2


def test_another_request_for_the_same_place_begins_anew(tiny_checkpoint, make_sample, tmp_path):
    class CutError(Exception):
        pass

    def cut(step, steps):
        raise CutError

    with pytest.raises(CutError):
        train(tiny_checkpoint, rows_of(make_sample, 4), options("language", steps=3), tmp_path / "target", progress=cut)
    steps = []
    more = rows_of(make_sample, 5)
    train(
        tiny_checkpoint,
        more,
        options("language", steps=3),
        tmp_path / "target",
        progress=lambda at, _: steps.append(at),
    )
    assert steps == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_the_states_of_a_training_with_a_similar_name_are_left_alone(tiny_checkpoint, make_sample, tmp_path):
    other = tmp_path / "target.2.abcdef12.steps"
    other.mkdir()
    train(tiny_checkpoint, rows_of(make_sample, 2), options("lora", steps=1), tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "target.2.abcdef12.steps"]
