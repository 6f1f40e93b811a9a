"""Targets of the fuzzing program: small functions of training, data, checkpoints and runs.

tests/fuzz/files.py damages the files that they read.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from arguments import (
    COUNT,
    DEVICE,
    FEW,
    FLAG,
    KEY,
    MODEL,
    PARAMS,
    SEED,
    STATE,
    TEXT,
    TREE,
    Kind,
    X,
    of_tensor,
    one_of,
)  # fmt: skip
from targets import BATCH, ESTIMATOR, NAME, OBSERVE, OPT, SCALE, SCHEME, SYSTEMS, TRAIN_STATE, target

from funcvae import data, models, runs, train
from funcvae.runs import config
from funcvae.train import checkpoint

FOLDER = tempfile.TemporaryDirectory(prefix="funcvae-fuzz-")
PATHS = one_of("", ".", "..", "/proc/self/nothing", "/nowhere/x", "~nobody/x", 3, None)
FOLDER_PATH = Kind(one_of(FOLDER.name, Path(FOLDER.name)), PATHS)
FILE_PATH = Kind(one_of(Path(FOLDER.name, "a.safetensors"), f"{FOLDER.name}/b.safetensors"), PATHS)
ROWS = Kind(one_of(1, 3, 5), one_of(0, -1, 10**12, 2**63, 10**400))
STEPS = of_tensor(one_of(torch.arange(3), torch.arange(0)))

target("train.run_keys", train.run_keys, weight=0.3, key=KEY)
target("train.step_keys", train.step_keys, weight=0.3, step_key=KEY, steps=STEPS)
target(
    "train.batches",
    train.batches,
    weight=0.3,
    key=KEY,
    n=ROWS,
    batch=BATCH,
    epoch=Kind(one_of(0, 7), one_of(-1, 2**32, "a", 1.5)),
)
target(
    "train.replay", lambda data, **rest: train.replay(train=data, **rest), weight=0.3, ts=TRAIN_STATE,
    step=Kind(one_of(0, 1, 3), one_of(-1, True, 1.5, "a", None, math.nan), junk=False),  # a distant step takes too long
    model=MODEL, estimator=ESTIMATOR, opt=OPT, data=X, batch=BATCH, samples=FEW, observe=OBSERVE, noise=SCHEME,
    scale=SCALE,
)  # fmt: skip

SOURCE = Kind(one_of("gaussian2d"), lambda rng, w: rng.choice(["mnist", "gaussian", "./gaussian2d", PATHS(rng, w)]))
target(
    "data.load",
    data.load,
    weight=0.1,
    source=SOURCE,
    root=FOLDER_PATH,
    download=Kind(one_of(False), one_of(0, None), junk=False),
)
target("data.stream", data.stream, weight=0.1, source=SOURCE)
target("data.gaussian2d", data.gaussian2d, weight=0.3, key=KEY, n=COUNT)

ABOUT = Kind(one_of({}, {"step": 3}, {"a": [1.5, None]}))
target("train.checkpoint.save", checkpoint.save, weight=0.05, path=FILE_PATH, tree_=TREE, about=ABOUT)


def loaded(tree_: Any, path: Any, like: Any) -> Any:
    """Loads a file into its own structure or another, and writes it before if there is no path."""
    written = checkpoint.save(Path(FOLDER.name, "a.safetensors"), tree_, {})
    return checkpoint.load(written if path is None else path, tree_ if like is None else like)


target(
    "train.checkpoint.load", loaded, weight=0.05, tree_=Kind(TREE.good), path=Kind(one_of(None), PATHS),
    like=Kind(one_of(None), TREE.bad),
)  # fmt: skip
target("train.checkpoint.save_params", checkpoint.save_params, weight=0.05, path=FILE_PATH, params=PARAMS, state=STATE)
target("train.checkpoint.load_params", checkpoint.load_params, weight=0.3, path=FILE_PATH, params=PARAMS, state=STATE)
target("train.checkpoint.has_params", checkpoint.has_params, weight=0.1, path=FILE_PATH, params=FILE_PATH)
target(
    "train.checkpoint.path_of",
    checkpoint.path_of,
    weight=0.1,
    folder=FOLDER_PATH,
    step=Kind(one_of(0, 7), one_of(-1, 10**12, "a")),
)
target("train.checkpoint.in_folder", checkpoint.in_folder, weight=0.1, folder=FOLDER_PATH)
target("train.checkpoint.prune", checkpoint.prune, weight=0.1, folder=FOLDER_PATH, keep=COUNT)

SYSTEM = Kind(one_of(*models.SYSTEMS), NAME.bad)
OWN = Path(FOLDER.name, "own_systems.py")
OWN.write_text(
    "import funcvae as fv\nmine = fv.System('mine', '', fv.models.mnist_vae, fv.models.Recipe((1, 28, 28), 1))\n"
)


def configured(**given: object) -> None:
    config.check_available(runs.configure(**given))


target(
    "runs.configure", configured, system=SYSTEM, data=TEXT, epochs=COUNT, batch=BATCH, samples=COUNT, seed=SEED,
    estimator=TEXT, device=Kind(one_of("cpu"), one_of("cuda", "auto", "", "meta")),
    precision=Kind(one_of("high"), TEXT.bad),
    keep=COUNT, checkpoint_every=COUNT, lr=Kind(one_of(None, 1e-3), one_of(-1.0, math.nan)), compile=FLAG, out=TEXT,
)  # fmt: skip
target("runs.has_run", runs.has_run, weight=0.1, path=FOLDER_PATH)
target("runs.read_result", runs.read_result, weight=0.1, path=FOLDER_PATH)
WHERE = Kind(one_of(str(OWN)), one_of("", "a.py", "no.such.module", "3", "..", "a:b"))
target("runs.find_system", runs.find_system, weight=0.1, system=Kind(one_of(*models.SYSTEMS, f"{OWN}:mine"), NAME.bad))
target("runs.systems_in", runs.systems_in, weight=0.1, where=WHERE)
OPTIONS = Kind(one_of({}, {"latent": 3}), one_of({"latnt": 3}, {"latent": math.nan}, {"latent": [[]]}, {3: 4}, 3))
target(
    "models.System.options", lambda which, given: which.options(given), weight=0.3, which=Kind(SYSTEMS, junk=False),
    given=OPTIONS,
)  # fmt: skip
target("runs.split_names", runs.split_names, weight=0.1, text=TEXT)
target(
    "runs.resolve_device", runs.resolve_device, weight=0.1, name=Kind(one_of("cpu", "auto"), one_of("cuda", "meta", ""))
)
target(
    "runs.load", runs.load, weight=0.1, path=FOLDER_PATH, checkpoint=SEED, device=DEVICE, data=TEXT, data_dir=TEXT
)  # fmt: skip
target("runs.history_of", runs.history_of, weight=0.1, path=FOLDER_PATH)
target("runs.summarize", runs.summarize, weight=0.1, path=FOLDER_PATH)
target("runs.runs_in", runs.runs_in, weight=0.1, folder=FOLDER_PATH)
GRID = {"systems": ["gaussian2d_vae"], "estimators": ["dreg"], "samples": [2], "seeds": [0], "settings": {"epochs": 1}}
SWEEP = Path(FOLDER.name, "sweep")
SWEEP.mkdir()
(SWEEP / "grid.json").write_text(json.dumps(GRID))
STRANGE = {
    "systems": ([], [None], {"a": 1}, "a"),
    "estimators": ([["a"]], ["a\nb"], [""]),
    "samples": ([-1], [1.5], 3),
    "seeds": ([math.nan], [10**400], [True]),
    "settings": ({"a\nb": 1}, {1: 1}, 3, {"epochs": []}),
    "replicates": ("a", 1, 10**400),
    "sytems": ([],),
    3: (4,),
}
CONTENT = Kind(
    one_of(GRID, {"systems": ["burda_vae"]}),
    lambda rng, w: rng.choice([{}, GRID | {name: rng.choice(STRANGE[name]) for name in rng.sample([*STRANGE], 1)}]),
)
target("runs.parse_grid", runs.parse_grid, weight=0.3, content=CONTENT)
target("runs.read_grid", runs.read_grid, weight=0.1, path=Kind(one_of(SWEEP / "grid.json"), PATHS))


def celled(content: Any, grid: Any, **options: Any) -> Any:
    return runs.expand_grid(runs.parse_grid(content) if grid is None else grid, **options)


target(
    "runs.expand_grid", celled, weight=0.1, content=CONTENT, grid=Kind(one_of(None), PATHS), folder=FOLDER_PATH,
    device=Kind(one_of("cpu"), one_of("", "meta")),
)  # fmt: skip


def checked_cells(content: Any, **options: Any) -> Any:
    return runs.check_cells(runs.parse_grid(content), **options)


target(
    "runs.check_cells", checked_cells, weight=0.1, content=CONTENT, folder=FOLDER_PATH,
    device=Kind(one_of("cpu"), one_of("", "meta")), download=Kind(one_of(False), one_of(None)),
)  # fmt: skip
target("runs.collect", runs.collect, weight=0.1, folder=Kind(one_of(SWEEP, str(SWEEP)), PATHS))
