"""The progress bar."""

import funcvae as fv
from funcvae import tracking
from tests.support.oracles import tiny


def test_a_function_shows_a_bar_until_all_is_done(capsys):
    for done in (0, 2, 4):
        tracking.bar(done, 4)
    first = capsys.readouterr().err
    assert "0/4" in first
    assert "4/4" in first
    tracking.bar(1, 3)
    assert "1/3" in capsys.readouterr().err, "the next call starts a new bar"
    tracking.bar(0, 2)
    assert "0/2" in capsys.readouterr().err, "and so does a smaller number"
    tracking.bar(2, 2)


def test_every_long_computation_reports_its_start_and_its_end():
    vae, opt = tiny()[0], fv.optim.adam(1e-3)
    _, params, state, x = tiny()
    key, on, seen = fv.random.key(0), (vae, params, state, x), []
    dreg = fv.estimators.dreg()
    noisy = {"samples": 2, "replicates": 40}
    for name, start in {
        "compare": lambda p: fv.variance.compare({"dreg": dreg}, *on, key, **noisy, timings=0, progress=p),
        "moments": lambda p: fv.variance.moments(dreg, *on, key, **noisy, progress=p),
        "bound_ladder": lambda p: fv.evaluate.bound_ladder(*on, key, samples=(1, 40), progress=p),
        "fit": lambda p: fv.train.fit(
            fv.train.init(vae, opt, key), vae, dreg, opt, x.float(), batch=1, epochs=20, compile=False, progress=p
        ),
    }.items():
        seen.clear()
        start(lambda *call: seen.append(call))
        total = seen[-1][1]
        assert seen[0] == (0, total), name
        assert seen[-1] == (total, total), name
