"""Parameters on disk: there and back bit for bit, and nothing half-written."""

import pytest
import torch

from funcvae import checkpoint, tree
from funcvae.errors import BadData, Missing


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


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    params, state = model()
    checkpoint.save_params(tmp_path / "a.safetensors", params, state)
    back = checkpoint.load_params(tmp_path / "a.safetensors", *blank((params, state)))
    assert tree.structure(back) == tree.structure((params, state))
    for a, b in zip(tree.leaves(back), tree.leaves((params, state)), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


def test_views_and_transposes_come_back_too(tmp_path):
    whole = torch.arange(6.0)
    params = {"first": whole[:3], "last": whole[3:], "turned": torch.arange(6.0).reshape(2, 3).T}
    checkpoint.save_params(tmp_path / "a", params, {})
    back, state = checkpoint.load_params(tmp_path / "a", *blank((params, {})))
    assert state == {}
    assert all(torch.equal(back[name], params[name]) for name in params)


def test_equal_parameters_give_equal_bytes_in_whatever_order(tmp_path):
    params, state = model()
    checkpoint.save_params(tmp_path / "a", params, state)
    checkpoint.save_params(tmp_path / "b", *tree.map(torch.clone, (params, state)))
    checkpoint.save_params(tmp_path / "c", dict(reversed(params.items())), dict(reversed(state.items())))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b == c
    params["encoder"]["0.bias"] = params["encoder"]["0.bias"] + 1e-7
    checkpoint.save_params(tmp_path / "d", params, state)
    assert (tmp_path / "d").read_bytes() != a


def test_saving_replaces_the_old_file_and_leaves_no_other(tmp_path):
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


def test_saving_leaves_its_arguments_as_they_were(tmp_path):
    trees = model()
    before = tree.map(torch.clone, trees)
    checkpoint.save_params(tmp_path / "a", *trees)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(trees), tree.leaves(before), strict=True))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(Missing, match=r"nowhere\.safetensors"):
        checkpoint.load_params(tmp_path / "nowhere.safetensors", *model())
    with pytest.raises(Missing):
        checkpoint.load_params(tmp_path, *model())


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, kept):
    path = tmp_path / "cut"
    checkpoint.save_params(path, *model())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadData, match="cut"):
        checkpoint.load_params(path, *model())


def another_shape(params, state):
    params["encoder"]["0.bias"] = torch.zeros(4)


def another_name(params, state):
    params["encoder"]["0.offset"] = params["encoder"].pop("0.bias")


def one_more(params, state):
    params["prior"]["loc"] = torch.zeros(2)


def one_less(params, state):
    del state["encoder"]["1.running_mean"]


def another_dtype(params, state):
    params["encoder"]["0.bias"] = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize("change", [another_shape, another_name, one_more, one_less, another_dtype])
def test_the_file_of_another_model_is_an_error(tmp_path, change):
    checkpoint.save_params(tmp_path / "a", *model())
    params, state = model()
    change(params, state)
    with pytest.raises(BadData, match="another model"):
        checkpoint.load_params(tmp_path / "a", params, state)
