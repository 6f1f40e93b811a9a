"""Blocks of replicates: their ranges and sums, and the same bits for every number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from funcvae import random
from funcvae.distributed.collectives import SINGLE
from funcvae.estimators import parse
from funcvae.variance import compare, moments, online_moments, replicate_loop
from funcvae.variance.replicate_loop import Block
from tests.support.oracles import tiny

KEY = random.key(0)


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
@pytest.mark.parametrize("ends", [(0, 1), (1, 2), (64, 128), (512, 1000), (65536, 100_000)])
def test_blocks_are_successive_whole_chunks_and_at_most_64(ends, chunk):
    pieces = replicate_loop.block_ranges(range(*ends), chunk)
    assert [r for piece in pieces for r in piece] == list(range(*ends))
    assert len(pieces) <= 64
    assert all(len(piece) % chunk == 0 and len(piece) >= 64 for piece in pieces[:-1])


def test_blocks_come_in_order():
    values = random.uniform(KEY, (300, 3), torch.float64)

    def compute(piece):
        some = values[piece.start : piece.stop]
        return Block(some.sum(0), some, [some[: max(0, 100 - piece.start), :1]])

    def empty():
        return Block(torch.zeros(3, dtype=torch.float64), values[:0], [values[:0, :1]])

    found = list(replicate_loop.blocks(replicate_loop.block_ranges(range(300), 7), compute, SINGLE, empty))
    torch.testing.assert_close(sum(block.sums for block in found), values.sum(0))
    assert torch.equal(torch.cat([block.rows for block in found]), values)
    assert torch.equal(torch.cat([block.first_rows[0] for block in found]), values[:100, :1])


def test_a_segment_added_as_one_vector_equals_its_gradients_added():
    g = [random.normal(key, (8, size)) for key, size in zip(random.split(KEY), (5, 2), strict=True)]
    first = [leaf[0] for leaf in g]
    one, other = (online_moments.empty_sums(first, order=4) for _ in range(2))
    one, square, _ = online_moments.add_segment_(one, 0, g)
    flat = online_moments.zero_powers(other)
    squares, _ = online_moments.sum_powers_(first, online_moments.power_views(flat, other), g)
    other = online_moments.add_powers_(other, flat, squares)
    assert torch.equal(squares, square)
    for a, b in zip(one.powers, other.powers, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(one.total, other.total)
    assert one.n == other.n == 8


PROGRAM = """
import json
from tests.support.oracles import tiny
from funcvae import distributed, random, tree
from funcvae.estimators import parse
from funcvae.variance import compare, moments
from funcvae.variance.results import plain
with distributed.process_group() as everyone:
    settings = dict(samples=3, replicates=700, chunk=4, processes=everyone)
    arms = {spec: parse(spec) for spec in ("iwae", "dreg", "elbo")}
    found = compare(arms, *tiny(), random.key(0), timings=0, **settings).to_dict()
    measured = moments(parse("dreg"), *tiny(), random.key(0), **settings)
    if everyone.is_main:
        trees = [tree.sha256(measured.variance), tree.sha256(measured.snr_se)]
        print(json.dumps([repr(found), *trees, repr(plain(measured.groups))]))
"""


def by_processes(tmp_path, n):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), str(program)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=env)
    return json.loads(done.stdout)


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_bits_do_not_depend_on_the_number_of_processes(tmp_path, capsys, n):
    exec(PROGRAM, {})  # in this process alone
    assert by_processes(tmp_path, n) == json.loads(capsys.readouterr().out)


def test_blocks_of_another_size_agree_to_rounding(monkeypatch):
    settings = {"samples": 2, "replicates": 300}
    arms = {spec: parse(spec) for spec in ("iwae", "dreg")}
    found, measured = (
        compare(arms, *tiny(), KEY, timings=0, **settings),
        moments(parse("dreg"), *tiny(), KEY, **settings),
    )
    monkeypatch.setattr(replicate_loop, "_MIN_REPLICATES", 1)
    again, other = compare(arms, *tiny(), KEY, timings=0, **settings), moments(parse("dreg"), *tiny(), KEY, **settings)
    for name in arms:
        a, b = found.row(name), again.row(name)
        assert b.groups["all"].variance.value == pytest.approx(a.groups["all"].variance.value, rel=1e-12)
        assert b.ratio["all"].value == pytest.approx(a.ratio["all"].value, rel=1e-12)
    assert other.groups["all"].snr.value == pytest.approx(measured.groups["all"].snr.value, rel=1e-12)
