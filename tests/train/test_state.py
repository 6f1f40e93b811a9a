"""Keys, batches and the initial TrainState."""

import torch

import funcvae as fv
from tests.support.training import same, small


def test_init_splits_its_key_into_one_for_the_parameters_and_one_for_the_run():
    model, opt, key = small(), fv.optim.adam(), fv.random.key(3)
    ts = fv.train.init(model, opt, key)
    init_key, run_key = fv.random.split(key)
    params, state = model.init(init_key)
    assert torch.equal(ts.key, run_key)
    assert all(map(torch.equal, fv.tree.leaves(ts.params), fv.tree.leaves(params)))
    assert ts.state == state
    assert ts.step == 0


def test_an_epoch_visits_every_row_once_in_the_documented_order():
    key, n = fv.random.key(5), 50
    order_key, step_key = fv.random.split(key)
    for epoch in (0, 3):
        rows, keys = fv.train.batches(key, n, 16, epoch)
        assert [len(r) for r in rows] == [16, 16, 16, 2]
        assert torch.equal(torch.cat(rows), fv.random.permutation(fv.random.fold_in(order_key, epoch), n))
        for i in range(4):
            assert torch.equal(keys[i], fv.random.split(fv.random.fold_in(step_key, 4 * epoch + i)))
    assert sorted(torch.cat(rows).tolist()) == list(range(n))


def test_init_under_vmap_equals_a_loop_over_the_keys_bit_for_bit():
    model, opt, keys = small(), fv.optim.adam(), fv.random.split(fv.random.key(0), 3)
    together = torch.vmap(lambda key: fv.train.init(model, opt, key))(keys)
    for i, key in enumerate(keys):
        assert same(fv.tree.map(lambda t, i=i: t[i], together), fv.train.init(model, opt, key))
