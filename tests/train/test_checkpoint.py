"""Checkpoints: saved tensors load bit for bit, and damaged files are errors."""

import json
import os
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from funcvae import tree
from funcvae.errors import BadData, BadType, BadValue, Missing
from funcvae.train import checkpoint


def model():
    params = {
        "encoder": {
            "0.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
            "0.bias": torch.zeros(3),
        },
        "decoder": {"scale": torch.tensor(1.5, dtype=torch.float64)},
        "prior": {},
    }
    state = {"encoder": {"1.running_mean": torch.ones(3), "1.num_batches_tracked": torch.tensor(7)}, "decoder": {}}
    return params, state


def blank(trees):
    return tree.map(torch.zeros_like, trees)


def test_save_params_and_load_params_keep_every_bit(tmp_path):
    params, state = model()
    checkpoint.save_params(tmp_path / "a.safetensors", params, state)
    back = checkpoint.load_params(tmp_path / "a.safetensors", *blank((params, state)))
    assert tree.structure(back) == tree.structure((params, state))
    for a, b in zip(tree.leaves(back), tree.leaves((params, state)), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


def test_views_and_transposes_are_saved(tmp_path):
    whole = torch.arange(6.0)
    params = {"first": whole[:3], "last": whole[3:], "turned": torch.arange(6.0).reshape(2, 3).T}
    checkpoint.save_params(tmp_path / "a", params, {})
    back, state = checkpoint.load_params(tmp_path / "a", *blank((params, {})))
    assert state == {}
    assert all(torch.equal(back[name], params[name]) for name in params)


def test_equal_parameters_give_equal_bytes_in_any_order(tmp_path):
    params, state = model()
    checkpoint.save_params(tmp_path / "a", params, state)
    checkpoint.save_params(tmp_path / "b", *tree.map(torch.clone, (params, state)))
    checkpoint.save_params(tmp_path / "c", dict(reversed(params.items())), dict(reversed(state.items())))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b == c
    params["encoder"]["0.bias"] = params["encoder"]["0.bias"] + 1e-7
    checkpoint.save_params(tmp_path / "d", params, state)
    assert (tmp_path / "d").read_bytes() != a


def test_saving_replaces_the_old_file(tmp_path):
    params, state = model()
    checkpoint.save_params(tmp_path / "a", *blank((params, state)))
    checkpoint.save_params(tmp_path / "a", params, state)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    back, _ = checkpoint.load_params(tmp_path / "a", params, state)
    assert torch.equal(back["encoder"]["0.weight"], params["encoder"]["0.weight"])


def test_a_save_that_fails_leaves_no_partial_file(tmp_path):
    (tmp_path / "taken").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(OSError, match="taken"):
        checkpoint.save_params(tmp_path / "taken", *model())
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_saving_does_not_modify_its_arguments(tmp_path):
    trees = model()
    before = tree.map(torch.clone, trees)
    checkpoint.save_params(tmp_path / "a", *trees)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(trees), tree.leaves(before), strict=True))


def test_the_error_names_a_missing_file(tmp_path):
    with pytest.raises(Missing, match=r"nowhere\.safetensors"):
        checkpoint.load_params(tmp_path / "nowhere.safetensors", *model())
    with pytest.raises(Missing):
        checkpoint.load_params(tmp_path, *model())


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_the_error_names_a_truncated_file(tmp_path, kept):
    path = tmp_path / "cut"
    checkpoint.save_params(path, *model())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadData, match="cut"):
        checkpoint.load_params(path, *model())


def another_shape(params, state):
    params["encoder"]["0.bias"] = torch.zeros(4)


def another_name(params, state):
    params["encoder"]["0.offset"] = params["encoder"].pop("0.bias")


def an_extra_parameter(params, state):
    params["prior"]["loc"] = torch.zeros(2)


def a_missing_buffer(params, state):
    del state["encoder"]["1.running_mean"]


def another_dtype(params, state):
    params["encoder"]["0.bias"] = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize("change", [another_shape, another_name, an_extra_parameter, a_missing_buffer, another_dtype])
def test_the_file_of_another_model_is_an_error(tmp_path, change):
    checkpoint.save_params(tmp_path / "a", *model())
    params, state = model()
    change(params, state)
    with pytest.raises(BadData, match="another model"):
        checkpoint.load_params(tmp_path / "a", params, state)


# Checkpoints: any tree, with JSON metadata.


class Pair(NamedTuple):
    first: dict
    second: tuple


def a_tree():
    params, state = model()
    return Pair({"params": params, "state": state}, (torch.tensor(3), [torch.ones(2, dtype=torch.int32)]))


def test_a_checkpoint_keeps_its_tree_and_json(tmp_path):
    about = {"metrics_bytes": 12, "words": ["a", 1.5, None]}
    path = checkpoint.save(tmp_path / "a", a_tree(), about)
    back, loaded_about = checkpoint.load(path, tree.map(torch.zeros_like, a_tree()))
    assert loaded_about == about
    assert tree.structure(back) == tree.structure(a_tree())
    assert tree.sha256(back) == tree.sha256(a_tree())
    assert all(leaf.data_ptr() % 64 == 0 for leaf in tree.leaves(back)), "alignment can change the bits of products"
    assert checkpoint.save(tmp_path / "b", back, about).read_bytes() == path.read_bytes()


def test_params_are_read_from_a_checkpoint_with_any_optimizer(tmp_path):
    params, state = model()
    rest = {"step": torch.tensor(3), "opt_state": {"mu": blank(params), "nu": [torch.ones(2)]}}
    path = checkpoint.save(tmp_path / "a", {"params": params, "state": state, **rest}, {})
    back = checkpoint.load_params(path, *blank((params, state)))
    assert tree.sha256(back) == tree.sha256((params, state))
    with pytest.raises(BadData, match="another model"):
        checkpoint.load_params(path, params, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the optimizer
    path.write_bytes(content)
    with pytest.raises(BadData, match="the SHA-256 of its tensors is wrong"):
        checkpoint.load_params(path, params, state)


def test_the_metadata_are_json_that_describes_the_file(tmp_path):
    with safe_open(checkpoint.save(tmp_path / "a", a_tree(), {"x": 1}), framework="pt") as file:
        head = json.loads(file.metadata()["funcvae"])
    assert head["format"] == 1
    assert head["sha256"] == tree.sha256(a_tree())
    assert head["structure"][0]["params"]["decoder"] == {"scale": "torch.float64 []"}
    assert head["structure"][0]["params"]["prior"] == {}
    assert head["about"] == {"x": 1}


@pytest.mark.parametrize("at", range(1, 60, 7))
def test_a_flipped_bit_of_a_tensor_is_an_error(tmp_path, at):
    path = checkpoint.save(tmp_path / "a", a_tree(), {})
    content = bytearray(path.read_bytes())
    content[-at] ^= 4
    path.write_bytes(content)
    with pytest.raises(BadData, match="the SHA-256 of its tensors is wrong"):
        checkpoint.load(path, a_tree())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head | {"format": 2}, "has format 2: this version of funcvae reads format 1"),
        (lambda head: head | {"sha256": "0"}, "SHA-256"),
        (lambda head: head | {"structure": []}, "of another model"),
        (lambda head: head | {"about": 3}, "its metadata have no object 'about'"),
        (lambda head: [], "does not hold a JSON object"),
        (lambda head: {}, "has format None"),
    ],
)
def test_wrong_metadata_are_an_error(tmp_path, change, message):
    path = checkpoint.save(tmp_path / "a", a_tree(), {})
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["funcvae"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"funcvae": json.dumps(change(head))})
    with pytest.raises(BadData, match=message):
        checkpoint.load(path, a_tree())


def test_a_file_of_parameters_is_not_a_checkpoint(tmp_path):
    checkpoint.save_params(tmp_path / "a", *model())
    params, state = model()
    with pytest.raises(BadData, match="its head is not JSON"):
        checkpoint.load(tmp_path / "a", {"params": params, "state": state})


def test_only_trees_of_tensors_are_saved(tmp_path):
    with pytest.raises(BadType, match=r"x is 1\.5: it must be a tensor"):
        checkpoint.save(tmp_path / "a", {"x": 1.5}, {})
    with pytest.raises(BadValue, match="two tensors of the tree have the same path"):
        checkpoint.save(tmp_path / "a", {"a/b": torch.ones(1), "a": {"b": torch.ones(1)}}, {})
    assert not (tmp_path / "a").exists()


def test_a_file_too_long_for_its_model_is_not_read(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(BadData, match="the file is too long for this one"):
        checkpoint.load_params(tmp_path / "a", *model())


def test_pipes_are_not_read(tmp_path):
    params, state = model()
    path, pipe = checkpoint.path_of(tmp_path, 3), tmp_path / "params.safetensors"
    checkpoint.save(path, {"params": params, "state": state}, {})
    os.mkfifo(pipe)
    assert not checkpoint.has_params(path, pipe)
    assert not checkpoint.has_params(pipe, path)
    pipe.unlink()
    checkpoint.save_params(pipe, params, state)
    assert checkpoint.has_params(path, pipe)
