"""Two processes with one thread each against one: their time, what they send, and an estimate for many GPUs.

python tests/benchmarks/scaling.py

Training: compiled steps of `burda_vae` with IWAE at k = 50, in batches of 20 rows (the recipe's) and of 100 that the
two processes share, and with 20 rows for each of the two against 20 for one. The lab: replicates of `iwae` and `dreg`
at K = 8 on a batch of 20, eager, as on the command line. Both sides take turns within one pair of processes: while the
first works alone, the other waits. Medians; the efficiency is (time of one)/(2 · time of two), or (time of one)/(time
of two) if each process does as much work as the one. An efficiency below its limit is marked. The cost of the messages
is the time of two above that of both processes at once, each with half of the rows and without messages.

The last table is an estimate from the counted messages of a step and the stated speeds. It is not measured.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median

import torch

import funcvae as fv
from funcvae.distributed import SINGLE, Processes
from funcvae.models import SYSTEMS
from funcvae.variance import replicate_loop

LEAST = 0.85  # efficiency
SYSTEM = SYSTEMS["burda_vae"]
SAMPLES, LAB_SAMPLES, BATCH = 50, 8, 20

GPU_FLOPS, GPU_ROWS = 30e12, 256  # half of an H100's float32 peak; rows of a batch on each GPU
HOST, REPLICATES = 3e9, 100_000  # bytes/s between hosts, 25 Gb/s Ethernet
LINKS = {8: (300e9, 3e-6), 64: (40e9, 5e-6), 512: (40e9, 5e-6)}  # bytes/s and s a message: NVLink; 400 Gb/s InfiniBand


def steps_of(batch: int, steps: int, shards: int | None, who: Processes) -> float:
    """Median milliseconds of a step."""
    x = fv.random.uniform(fv.random.key(1), (batch * steps, 1, 28, 28))
    recipe = SYSTEM.recipe
    model, opt = SYSTEM.build(x), recipe.optimizer(steps)
    ts, marks = fv.train.init(model, opt, fv.random.key(0)), [0.0]
    fv.train.fit(
        ts, model, fv.estimators.iwae(), opt, x, batch=batch, samples=SAMPLES, observe=recipe.observe, shards=shards,
        processes=who, watch=lambda step, ts: marks.append(time.perf_counter()),
    )  # fmt: skip
    spent = [after - before for before, after in pairwise(marks[1:])]
    return 1e3 * median(spent[len(spent) // 4 :])


def lab(replicates: int, who: Processes) -> float:
    """Milliseconds of a comparison."""
    x = fv.random.bernoulli(fv.random.key(1), 0.3, (BATCH, 1, 28, 28)).float()
    model = SYSTEM.build(x)
    arms = {"iwae": fv.estimators.iwae(), "dreg": fv.estimators.dreg()}
    settings = {"samples": LAB_SAMPLES, "replicates": replicates, "timings": 0, "processes": who}
    start = time.perf_counter()
    fv.variance.compare(arms, model, *model.init(fv.random.key(0)), x, fv.random.key(2), **settings)
    return 1e3 * (time.perf_counter() - start)


def in_turns(
    one: Callable[[Processes], float],
    two: Callable[[Processes], float],
    both: Processes,
    rounds: int,
    part: Callable[[Processes], float] = lambda who: math.nan,
) -> tuple[float, float, float]:
    """Median times of the first process alone, of both together, and of `part` in both at once without messages."""
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(rounds):
        times[0].append(one(SINGLE) if both.is_main else math.nan)
        both.barrier()  # the other waits here
        times[1].append(two(both))
        both.barrier()
        times[2].append(part(SINGLE))
        both.barrier()
    one_ms, two_ms, part_ms = map(median, times)
    return one_ms, two_ms, part_ms


def measure(steps: int, replicates: int, rounds: int) -> None:
    """Measures both sides in each of the two processes; the first prints."""
    torch.set_num_threads(1)
    with fv.distributed.process_group() as both:
        say = print if both.is_main else lambda line: None
        say(f"one thread each, torch {torch.__version__}; ms of one process, ms of two; efficiency")
        for batch in (BATCH, 100):
            for shards, how in ((None, "torch's order"), (2, "fixed order, 2 shards")):
                before = both.sent
                one, two = partial(steps_of, batch, steps, None), partial(steps_of, batch, steps, shards)
                *ms, part = in_turns(one, two, both, rounds, partial(steps_of, batch // 2, steps, None))
                messages, size = both.sent.messages - before.messages, both.sent.bytes - before.bytes
                say(f"burda_vae, k = {SAMPLES}, batch {batch}, {how}: {_line(*ms, 2)}")
                made = rounds * steps
                say(
                    f"    a step sends {size / made / 2**20:.2f} MiB in {messages / made:.1f} messages; without them "
                    f"each process takes {part:.2f} ms for its rows, so they cost {ms[1] - part:.2f} ms"
                )
        *ms, _ = in_turns(
            partial(steps_of, BATCH, steps, None), partial(steps_of, 2 * BATCH, steps, None), both, rounds
        )
        say(f"burda_vae, k = {SAMPLES}, {BATCH} rows for each process, torch's order: {_line(*ms, 1)}")
        before = both.sent
        *ms, _ = in_turns(partial(lab, replicates), partial(lab, replicates), both, rounds)
        messages, size = both.sent.messages - before.messages, both.sent.bytes - before.bytes
        say(f"lab, {replicates:,} replicates of iwae and dreg, K = {LAB_SAMPLES}: {_line(*ms, 2)}")
        say(f"    a comparison sends {size / rounds / 2**20:.1f} MiB in {messages / rounds:.0f} messages")


def _line(one: float, two: float, parts: int) -> str:
    efficiency = one / (parts * two)
    mark = f" (below {LEAST})" if efficiency < LEAST else ""
    return f"{one:.2f}, {two:.2f}; {efficiency:.2f}{mark}"


def estimate() -> None:
    """Estimates the efficiency of many GPUs with equally many rows from the stated speeds."""
    params, _ = SYSTEM.build(torch.zeros(1, 1, 28, 28)).init(fv.random.key(0))
    decoder, encoder = (sum(leaf.numel() for leaf in fv.tree.leaves(params[name])) for name in ("decoder", "encoder"))
    size, leaves = decoder + encoder, len(fv.tree.leaves(params))
    flop = 6 * GPU_ROWS * (SAMPLES * decoder + encoder)  # one product forward and two backward, 2 flop each
    step = flop / GPU_FLOPS
    # A comparison of two estimators: the products of a replicate, and its results, which are gathered between hosts.
    each, width = 6 * BATCH * (LAB_SAMPLES * decoder + encoder) / GPU_FLOPS, 2 * (3 * leaves + 1) + BATCH
    print(f"\nestimate: {GPU_ROWS} rows on each GPU, {flop / 1e9:.1f} Gflop at {GPU_FLOPS / 1e12:.0f} Tflop/s, take")
    print(f"{1e3 * step:.2f} ms; each GPU sends twice the {4 * size / 2**20:.2f} MiB of a gradient, along a tree (any")
    print("order) or to every other process (fixed order, as many shards as processes). Lab: 2 estimators,")
    print(f"{REPLICATES:,} replicates of {1e6 * each:.1f} us each; all processes gather {8 * width} bytes of each at")
    print(f"{HOST / 1e9:.0f} GB/s")
    for gpus, (rate, latency) in LINKS.items():
        sent = 2 * 4 * size * (gpus - 1) / gpus / rate
        engine = step / (step + sent + 2 * math.ceil(math.log2(gpus)) * latency)
        fixed = step / (step + sent + 2 * (gpus - 1) * latency)
        segments = [(2**i, min(2 ** (i + 1), REPLICATES)) for i in range(REPLICATES.bit_length())]
        pieces = [replicate_loop.block_ranges(range(*ends), 1) for ends in segments]
        rounds = [-(-len(blocks) // gpus) for blocks in pieces]  # in each, a process computes one block and gets all
        busy = sum(count * len(blocks[0]) for count, blocks in zip(rounds, pieces, strict=True))
        exchange = sum(rounds) * (gpus - 1) * (2 * 2 * 8 * size / rate + latency)
        lab = REPLICATES * each / (gpus * (busy * each + exchange + REPLICATES * 8 * width / HOST))
        where = f"{rate / 1e9:.0f} GB/s, {1e6 * latency:.0f} us per message"
        print(f"    {gpus:3} GPUs, {where}: torch's order {engine:.2f}, fixed order {fixed:.2f}; lab {lab:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=150, help="steps per turn")
    parser.add_argument("--replicates", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if "RANK" in os.environ:
        measure(args.steps, args.replicates, args.rounds)
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        options = [f"--{name}={value}" for name, value in vars(args).items()]
        subprocess.run([*command, *options], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        estimate()
