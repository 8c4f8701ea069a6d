"""Names that files give lead to nothing outside of their folder, neither for reading nor for writing."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest

from onesteptrain.data.pool import open_pool, write_subset
from onesteptrain.errors import ModelError, PoolError
from onesteptrain.proxy import load_proxy
from tests.pool_files import qa


@pytest.fixture
def folder(tmp_path):
    """A dataset folder of two shards, with another one's shard beside it."""
    for name in ("pool", "other"):
        rows = [qa(f"{name} {i}", id=f"{name}{i}") for i in range(4)]
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / name, num_shards=2)
    shutil.copy(tmp_path / "other" / "data-00000-of-00002.arrow", tmp_path / "outside.arrow")
    return tmp_path / "pool"


def rename_shard(folder, name):
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"][1]["filename"] = name
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    "name", ["../outside.arrow", "sub/../../outside.arrow", "ABSOLUTE", "link.arrow", "links/a.arrow"]
)
def test_shards_outside_of_a_dataset_folder_are_refused(name, folder):
    outside = folder.parent / "outside.arrow"
    (folder / "sub").mkdir()
    (folder / "link.arrow").symlink_to(outside)
    (folder.parent / "a.arrow").write_bytes(outside.read_bytes())
    (folder / "links").symlink_to(folder.parent)
    rename_shard(folder, str(outside) if name == "ABSOLUTE" else name)
    with pytest.raises(PoolError, match=r"leaves the folder|is a link") as refused:
        open_pool(folder)
    assert "\n" not in str(refused.value)


def test_a_shard_that_is_named_twice_is_refused(folder):
    rename_shard(folder, "./data-00000-of-00002.arrow")
    with pytest.raises(PoolError, match="names a file twice"):
        open_pool(folder)


def test_a_link_beside_the_shards_is_copied_into_no_subset(folder):
    (folder.parent / "secret").write_text("secret")
    (folder / "dataset_info.json").unlink()
    (folder / "dataset_info.json").symlink_to(folder.parent / "secret")
    with pytest.raises(PoolError, match=r"dataset_info\.json' is a link"):
        open_pool(folder)


def test_shards_in_folders_of_a_dataset_folder_are_read_and_copied(folder):
    (folder / "sub").mkdir()
    (folder / "data-00001-of-00002.arrow").rename(folder / "sub" / "b.arrow")
    rename_shard(folder, "sub/b.arrow")
    pool = open_pool(folder)
    assert [row.uid for row in pool] == ["pool0", "pool1", "pool2", "pool3"]
    write_subset(pool, [0, 3], folder.parent / "subset")
    assert [row.uid for row in open_pool(folder.parent / "subset")] == ["pool0", "pool3"]


def test_a_dataset_folder_in_the_cache_of_the_hub_is_read_though_its_files_are_links(folder):
    cache = folder.parent / "datasets--owner--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "0123").mkdir(parents=True)
    for place, path in enumerate(sorted(folder.iterdir())):
        path.rename(cache / "blobs" / str(place))
        (cache / "snapshots" / "0123" / path.name).symlink_to(f"../../blobs/{place}")
    assert [row.uid for row in open_pool(cache / "snapshots" / "0123")] == ["pool0", "pool1", "pool2", "pool3"]


@pytest.mark.parametrize("name", ["../weights.safetensors", "/weights.safetensors"])
def test_weights_outside_of_a_checkpoint_folder_are_refused(name, tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names weights outside of its folder"):
        load_proxy(copy)
