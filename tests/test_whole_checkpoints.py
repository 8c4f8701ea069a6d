"""A checkpoint is loaded whole or refused by the name of what is wrong with it."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from onesteptrain.errors import ModelError
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A checkpoint to break."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


def change_weights(folder, change, file="model.safetensors"):
    weights = load_file(folder / file)
    named = change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})
    return named


def drop(weights):
    name = next(name for name in weights if "language" in name and name.endswith("down_proj.weight"))
    del weights[name]
    return name.rpartition("layers")[2]


def add(weights):
    weights["surplus.weight"] = torch.zeros(2)
    return "surplus.weight"


def resize(weights):
    name = next(name for name in weights if "language" in name and name.endswith("down_proj.weight"))
    weights[name] = weights[name][:-1].contiguous()
    return name.rpartition("layers")[2]


@pytest.mark.parametrize("change", [drop, add, resize])
def test_weights_that_are_not_the_models_are_refused_by_name(copy, change, capfd):
    load_proxy(copy)
    name = change_weights(copy, change)
    capfd.readouterr()
    with pytest.raises(ModelError) as refused:
        load_proxy(copy)
    assert "\n" not in str(refused.value)
    if change is not resize:  # the library refuses that by itself, without a name
        assert name in str(refused.value)
        assert "LOAD REPORT" not in capfd.readouterr().err


def text_config(config):
    return config.get("text_config", config)


@pytest.mark.parametrize(
    ("layers", "words"), [(-1, "num_hidden_layers -1"), (0, "num_hidden_layers 0"), (1, "has too many weights")]
)
def test_a_configuration_with_too_few_layers_is_refused(copy, layers, words):
    config = json.loads((copy / "config.json").read_text())
    text_config(config)["num_hidden_layers"] = layers
    if "layer_types" in text_config(config):
        text_config(config)["layer_types"] = text_config(config)["layer_types"][: max(layers, 0)]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load_proxy(copy)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_refused_by_name(copy, value):
    def spoil(weights):
        name = next(name for name in weights if name.endswith("down_proj.weight"))
        weights[name][0, 0] = value
        return name.rpartition("layers")[2]

    name = change_weights(copy, spoil)
    with pytest.raises(ModelError, match="is not finite") as refused:
        load_proxy(copy)
    assert name in str(refused.value)


def test_a_weight_too_large_for_a_type_is_refused_in_that_type_alone(copy):
    def enlarge(weights):
        next(value for name, value in weights.items() if name.endswith("down_proj.weight"))[0, 0] = 1e6

    change_weights(copy, enlarge)
    load_proxy(copy)
    with pytest.raises(ModelError, match=r"not finite in torch\.float16"):
        load_proxy(copy, options=LoadOptions(dtype="float16"))


@pytest.mark.parametrize("broken", ["base", "adapters"])
def test_adapters_are_refused_with_a_weight_missing_in_them_or_in_their_base(copy, tmp_path, broken):
    load_proxy(copy, ScopeOptions("lora", last_layers=1)).save(tmp_path / "lora")
    load_proxy(tmp_path / "lora", ScopeOptions("lora", last_layers=1))

    def drop_lora(weights):
        del weights[next(iter(weights))]

    if broken == "base":
        change_weights(copy, drop)
    else:
        change_weights(tmp_path / "lora", drop_lora, "adapter_model.safetensors")
    with pytest.raises(ModelError, match="lacks weights of its model, 1 in all"):
        load_proxy(tmp_path / "lora", ScopeOptions("lora", last_layers=1))
