"""Replayed steps against the steps of the run."""

import pytest
import torch

import funcvae as fv
from funcvae.errors import BadValue
from tests.support.training import begun, binarize01, same


@pytest.mark.parametrize(("made", "step"), [(0, 0), (0, 3), (0, 6), (3, 3), (3, 4), (5, 7)])
def test_a_replayed_step_equals_the_step_of_the_run_bit_for_bit(points, made, step):
    start, model, estimator, opt = begun()
    options = {"batch": 16, "samples": 3, "observe": binarize01, "scale": fv.train.summed, "offset": 0.5}
    options["compile"] = False
    states, rows = {0: start}, []
    fv.train.fit(
        start, model, estimator, opt, points, epochs=2, **options, log=rows.append,
        watch=lambda step, ts: states.update({step: fv.tree.map(torch.clone, ts)}),
    )  # fmt: skip
    before = fv.tree.map(torch.clone, states[made])
    found = fv.train.replay(states[made], step, model, estimator, opt, points, **options)
    assert same(states[made], before), "replay must not modify its TrainState"
    assert same(found.before, states[step])
    assert same(found.after, states[step + 1])
    row = next(row for row in rows if "loss" in row and row["step"] == step)
    assert found.metrics._asdict() == {name: row[name] for name in found.metrics._fields}
    assert float(found.bound.mean()) == row["bound"]
    visited, keys = fv.train.batches(start.key, 50, 16, step // 4)
    assert torch.equal(found.rows, visited[step % 4])
    noise_key, observe_key = keys[step % 4]
    assert torch.equal(found.x, binarize01(observe_key, points[found.rows]))
    assert torch.equal(found.eps, fv.noise.iid(noise_key, 3, (len(found.rows), 2)))
    out = estimator(model, states[step].params, states[step].state, found.x, found.eps, train=True)
    assert torch.equal(found.log_w, out.log_w)
    assert same(found.grads, out.grads)


def test_a_step_before_the_train_state_is_an_error(points):
    start, model, estimator, opt = begun()
    later, _ = fv.train.fit(start, model, estimator, opt, points, batch=16, compile=False)
    with pytest.raises(BadValue, match="step is 3: ts has made 4 steps"):
        fv.train.replay(later, 3, model, estimator, opt, points, batch=16, compile=False)
