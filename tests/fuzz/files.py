"""Calls everything that reads a file with damaged and hostile files.

python tests/fuzz/files.py [--cases 60000] [--seed 0] [--kind config] [--case 17]

A case damages a valid file (or run) and reads it. Reading must succeed or raise a `FuncvaeError` of one line, without a
warning, within a minute (compiled steps are slow) and in less than 1 GiB. Only `resume` may write, and only in the run
folder: not next to it, in the temporary folder or in the current folder. Cases are reproducible. Prints the
results of every kind of file. Exit status 1: a case failed.
"""

import argparse
import gzip
import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import Any, NamedTuple

import limits
import numpy as np
from PIL import Image
from tqdm import tqdm

import funcvae as fv
from funcvae import data, runs, tracking
from funcvae.data import named_sets
from funcvae.errors import FuncvaeError, Stopped
from funcvae.train import checkpoint

Choose = random.Random
PATIENCE = 60.0  # seconds for a case


class Kind(NamedTuple):
    """A kind of input, and the files to damage."""

    make: Callable[[Path], None]
    """Creates the folder; called once."""
    damage: tuple[str, ...]
    """Files in the folder; one of them is damaged."""
    read: Callable[[Path], Any]
    weight: int = 10
    written: str = ""
    """The subfolder that reading may change."""


# Valid files.


def points(folder: Path) -> None:
    x = fv.random.normal(fv.random.key(0), (12, 2)).numpy()
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", train=x[:9], test=x[9:], train_labels=np.arange(9), test_labels=np.arange(3))
    np.savez_compressed(folder / "c.npz", train=np.zeros((9, 20), np.uint8))


def digits(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in {"train": 6, "t10k": 3}.items():
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 2051, n, 28, 28) + bytes(range(196)) * 4 * n
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + bytes(range(n)))


def zipped(folder: Path) -> None:
    digits(folder)
    for path in list((folder / "MNIST" / "raw").iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def images(folder: Path) -> None:
    for i, name in enumerate(["a.png", "b.png", "c.jpg", "d.bmp", "e.webp"]):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / name)


def a_run(folder: Path, steps: int | None = None, **given: Any) -> None:
    points(folder)
    made = iter(range(1, 1000))
    config = runs.configure(
        "gaussian2d_vae", data=str(folder / "x.npz"), epochs=2, batch=4, samples=1, checkpoint_every=2,
        out=str(folder / "run"), **given,
    )  # fmt: skip
    with suppress(Stopped):
        runs.run(config, stop_context=lambda: nullcontext(lambda: steps is not None and next(made) >= steps))


def half_a_run(folder: Path) -> None:
    a_run(folder, 5)


def sampled_run(folder: Path) -> None:
    a_run(folder, sample_each_step=True)


def half_a_sampled_run(folder: Path) -> None:
    a_run(folder, 5, sample_each_step=True)


def states(folder: Path) -> None:
    params, state = fv.models.gaussian2d_vae(hidden=3).init(fv.random.key(0))
    checkpoint.save(folder / "a.safetensors", {"params": params, "state": state}, {"metrics_bytes": 7})
    checkpoint.save_params(folder / "b.safetensors", params, state)


# Readers.


def from_debian(folder: Path) -> Any:
    named_sets.DEBIAN_FASHION = folder
    return data.load("fashion-mnist", root=folder / "nothing")


def like() -> Any:
    return dict(zip(("params", "state"), fv.models.gaussian2d_vae(hidden=3).init(fv.random.key(0)), strict=True))


LIKE = like()
RUN_FILES = ("run/config.json", "run/manifest.json", "run/metrics.jsonl", "run/params.safetensors")
CHECKPOINTS = ("run/checkpoints/step-000000000004.safetensors", "run/checkpoints/step-000000000005.safetensors")
KINDS = {
    "npy": Kind(points, ("x.npy",), lambda f: data.load(str(f / "x.npy"))),
    "npz": Kind(points, ("x.npz",), lambda f: data.load(str(f / "x.npz"))),
    "npz, compressed": Kind(points, ("c.npz",), lambda f: data.load(str(f / "c.npz"))),
    "idx": Kind(
        digits,
        ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"),
        lambda f: data.load("mnist", root=f),
    ),
    "idx, gzipped": Kind(zipped, ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"), from_debian, weight=4),
    "images": Kind(images, ("a.png", "b.png", "c.jpg", "d.bmp", "e.webp"), lambda f: data.load(str(f))),
    "checkpoint": Kind(states, ("a.safetensors",), lambda f: checkpoint.load(f / "a.safetensors", LIKE)),
    "params": Kind(states, ("b.safetensors",), lambda f: checkpoint.load_params(f / "b.safetensors", **LIKE)),
    "run": Kind(a_run, RUN_FILES, lambda f: runs.load(f / "run")),
    "unfinished run": Kind(half_a_run, (*RUN_FILES[:2], *CHECKPOINTS), lambda f: runs.load(f / "run"), weight=2),
    "summary": Kind(a_run, RUN_FILES[:3], lambda f: str(runs.summarize(f / "run"))),
    "summaries": Kind(a_run, RUN_FILES[:3], lambda f: runs.runs_table(runs.runs_in(f))),
    "metrics": Kind(a_run, ("run/metrics.jsonl",), lambda f: list(tracking.MetricsReader(f / "run/metrics.jsonl"))),
    "verify": Kind(a_run, RUN_FILES[:3], lambda f: runs.verify(f / "run", 3), weight=1),
    "replay": Kind(half_a_run, (*RUN_FILES[:2], *CHECKPOINTS), lambda f: runs.replay(f / "run", 4), weight=1),
    "resume": Kind(
        half_a_run, (*RUN_FILES[:3], *CHECKPOINTS), lambda f: runs.resume(f / "run"), weight=1, written="run"
    ),
    "resume, finished": Kind(a_run, RUN_FILES, lambda f: runs.resume(f / "run"), weight=1, written="run"),
    "resume, samples": Kind(
        half_a_sampled_run, ("run/.samples.f32",), lambda f: runs.resume(f / "run"), weight=1, written="run"
    ),
    "more epochs": Kind(
        sampled_run,
        ("run/samples.npy",),
        lambda f: runs.resume(f / "run", runs.Options(epochs=3)),
        weight=1,
        written="run",
    ),
}


# Damage to bytes.


def flipped(choose: Choose, old: bytes) -> bytes:
    new = bytearray(old)
    for _ in range(choose.choice([1, 1, 3, 20])):
        new[choose.randrange(len(new))] ^= 1 << choose.randrange(8)
    return bytes(new)


def in_the_head(choose: Choose, old: bytes) -> bytes:
    new = bytearray(old)
    for _ in range(choose.choice([1, 2, 4])):
        new[choose.randrange(min(len(new), 140))] = choose.choice([0, 1, 2, 127, 128, 255, choose.randrange(256)])
    return bytes(new)


def truncated(choose: Choose, old: bytes) -> bytes:
    return old[: choose.randrange(len(old))]


def extended(choose: Choose, old: bytes) -> bytes:
    return old + choose.choice([b"\0" * 9, old, b"\n", b"{}\n", choose.randbytes(100)])


HEADS = (
    b"PK\3\4\x14\0\0\0\x08\0",
    b"\x93NUMPY\x01\x00v\x00{'descr':",
    b"\x1f\x8b\x08\0",
    b"\x89PNG\r\n\x1a\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"\x80\x04\x95",  # a pickle
    b'{"step": 1}\n',
)


def grafted(choose: Choose, old: bytes) -> bytes:
    """Puts the header of one kind of file before the rest of another."""
    donor = choose.choice(HEADS)
    return donor + old[choose.choice([0, len(donor), choose.randrange(len(old))]) :]


def spliced(choose: Choose, old: bytes) -> bytes:
    at, length = choose.randrange(len(old)), choose.randrange(64)
    return old[:at] + choose.choice([b"", b"\0" * length, choose.randbytes(length)]) + old[at + length :]


def replaced(choose: Choose, old: bytes) -> bytes:
    return choose.choice(
        [b"", b"\0", b"PK\3\4", b"\x93NUMPY", b"\x1f\x8b", b"{}", b"[]", b"GIF89a", choose.randbytes(50)]
    )


# Damage to content.

HOSTILE = (None, True, -1, 0, 1.5, 1e308, "", "../../x", "/etc/passwd", [], {}, [[]], "nan", float("nan"))
HOSTILE += (-(2**63), 10**30, float("inf"), "/" * 5000, "\0", "\ud800", "a\nb", "\x1b[31m", {"a": None})


def as_json(choose: Choose, old: bytes) -> bytes:
    """Changes the JSON object, or one object of JSON lines."""
    lines = old.splitlines(keepends=True) if old.count(b'{"') > 2 and b"\n  " not in old else [old]
    at = choose.randrange(len(lines))
    content = json.loads(lines[at])
    name = choose.choice(list(content))
    inner = content
    while isinstance(inner[name], dict) and inner[name] and choose.random() < 0.7:
        inner = inner[name]
        name = choose.choice(list(inner))
    match choose.randrange(4):
        case 0:
            del inner[name]
        case 1:
            inner[name + "_"] = inner.pop(name)
        case _:
            inner[name] = choose.choice(HOSTILE)
    lines[at] = json.dumps(content).encode() + b"\n"
    whole = b"".join(lines)
    odd = [
        b"\xef\xbb\xbf" + whole,
        whole.replace(b"{", b"[" * 10_000, 1),
        whole.replace(b'"', b"\xff", 1),
        whole + whole,
        whole.replace(b": ", b": " + b"[" * 10_000 + b"]" * 10_000 + b', "a": ', 1),
        whole.replace(b"{", b'{"step": 1, "system": "mnist_vae", ', 1),  # duplicate keys
        whole.replace(b"{", b'{"step": ' + b"9" * 5000 + b", ", 1),
        whole.replace(b"{", b'{"step": -Infinity, ', 1),
    ]
    return choose.choice(odd) if choose.random() < 0.1 else whole


def as_safetensors(choose: Choose, old: bytes) -> bytes:
    size = struct.unpack("<Q", old[:8])[0]
    head, rest = json.loads(old[8 : 8 + size]), old[8 + size :]
    name = choose.choice([name for name in head if name != "__metadata__"])
    match choose.randrange(8):
        case 0:
            return struct.pack("<Q", choose.choice([0, 1, size + 1, 2**31, 2**63, 2**64 - 1])) + old[8:]
        case 1:
            head[choose.choice(["../x", "/etc/x", name + "x", ""])] = head.pop(name)
        case 2:
            head[name]["dtype"] = choose.choice(["F64", "I8", "F32", "BF16", "X", 3, None])
        case 3:
            head[name]["shape"] = choose.choice([[], [-1], [2**40, 2**40], [10**15], [0], [2**64], "x", [[1]]])
        case 4:
            head[name]["data_offsets"] = choose.choice([[0, 4], [0, 2**40], [8, 4], [-4, 0], [], None, ["a", "b"]])
        case 5:
            head["__metadata__"] = choose.choice([{}, {"funcvae": "{}"}, {"funcvae": "x"}, {"funcvae": 3}, [], None])
        case 6:
            head = {"__metadata__": head.get("__metadata__", {})}
        case _:
            metadata = json.loads(head.get("__metadata__", {}).get("funcvae", "{}"))
            metadata[choose.choice(["format", "sha256", "structure", "about"])] = choose.choice(HOSTILE)
            head["__metadata__"] = {"funcvae": json.dumps(metadata)}
    new = json.dumps(head).encode()
    return struct.pack("<Q", len(new)) + new + rest


def as_npy(choose: Choose, old: bytes) -> bytes:
    """The same bytes with another header."""
    shape = choose.choice(
        [
            "(10**15,)",
            "(1000000000000000,)",
            "(-1, 2)",
            "()",
            "(12, 2)",
            "(0, 2)",
            "('a',)",
            "(2,) * 99",
            "(True, 2)",
            "(0, 10000000000000)",
            "(" + "1, " * 70 + ")",
            "(" * 3000,
            "(-1, -96)",
            "(12.0, 2)",
        ]
    )
    kind = choose.choice(
        [
            "<f4",
            "|O",
            ">f8",
            "<c16",
            "|b1",
            "<U4",
            "V8",
            "<i2",
            "<M8[s]",
            "nonsense",
            "[('a', '<f4')]",
            "V0",
            "<U0",
            "<f2",
            "<f16",
            "<c32",
            "<i8",
            "|u1",
            "|V1000000000000",
            "<U999999999",
        ]
    )
    head = f"{{'descr': {kind!r}, 'fortran_order': {choose.choice(['False', 'True', '1L'])}, 'shape': {shape}, }}"
    head += " " * choose.choice([0, 7, 64, 70_000]) + "\n"
    if len(head) > 60_000:
        return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head.encode() + old[-96:]
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + old[-96:]


def as_zip(choose: Choose, old: bytes) -> bytes:
    """The same arrays in a damaged archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(old)) as archive, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for member in archive.infolist():
            content = archive.read(member)
            name = member.filename
            if choose.random() < 0.5:
                content = choose.choice([as_npy, flipped, truncated])(choose, content)
            if choose.random() < 0.2:
                name = choose.choice(["../train.npy", "/train.npy", "train", "test.npy", "train.npy", "a" * 9999])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # duplicate names
                new.writestr(name, content)
        if choose.random() < 0.01:
            head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 64), }\n"
            n = choose.choice([2**10, 2**18, 2**20])  # 64 KiB, 16 MiB or 64 MiB, not truncated
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # duplicate names
                bomb = new.open(choose.choice(["train.npy", "train", "unread.npy"]), "w")
            with bomb:
                bomb.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head % n)) + head % n)
                for _ in range(n // 2**10):
                    bomb.write(bytes(2**16))
    raw = bytearray(made.getvalue())
    if choose.random() < 0.4:  # wrong sizes, checksums and flags in the directory
        at = raw.find(b"PK\1\2")
        field = choose.choice([8, 10, 16, 20, 24])
        raw[at + field : at + field + 2] = choose.choice([b"\xff\xff", b"\0\0", b"\1\0", choose.randbytes(2)])
    return bytes(raw)


def gzip_bomb(choose: Choose, old: bytes) -> bytes:
    if choose.random() < 0.02:
        return choose.choice([b"", IMAGES_HEAD]) + BOMB[: choose.choice([47, 48, 512]) * len(BOMB) // 512]
    return gzip.compress(choose.choice([flipped, truncated, in_the_head])(choose, gzip.decompress(old)))


BOMB = gzip.compress(bytes(2**20), 9) * 512  # concatenated members: half a GiB in half a MiB
IMAGES_HEAD = gzip.compress(struct.pack(">iiii", 2051, 47, 1024, 1024))  # the header of 47 images of one MiB


def image_bomb(choose: Choose, old: bytes) -> bytes:
    """A PNG with a wrong size in its header, or of another size."""
    if choose.random() < 0.1:
        made = io.BytesIO()
        side = choose.choice([1000, 2300, 4096, 4097, 9000])
        Image.new("L", (side, side)).save(made, "png", compress_level=1)
        return made.getvalue()
    side = struct.pack(">I", choose.choice([0, 1, 9, 60_000, 2**31 - 1]))
    return old[:16] + side + choose.choice([side, old[20:24]]) + old[24:]


BYTES = (flipped, in_the_head, truncated, extended, spliced, grafted, replaced)
CONTENT = {
    ".json": (as_json,) * 6,
    ".jsonl": (as_json,) * 6,
    ".safetensors": (as_safetensors,) * 6,
    ".npy": (as_npy,) * 6,
    ".npz": (as_zip,) * 6,
    ".gz": (gzip_bomb,) * 3,
    ".png": (image_bomb,) * 3,
}


def damage(choose: Choose, path: Path) -> None:
    """Damages a file, or replaces it by a link, folder or pipe."""
    if choose.random() < 0.02:
        path.unlink()
        places = (path, "/dev/zero", "/proc/self/mem", "/nowhere", path.parent)  # reading mem is an error
        links = [lambda place=place: path.symlink_to(place) for place in places]
        choose.choice([lambda: None, path.mkdir, lambda: os.mkfifo(path), *links])()
        return
    how = choose.choice(BYTES + CONTENT.get(path.suffix, ()))
    path.write_bytes(how(choose, path.read_bytes()))


# The cases.


def watched(folder: str, allowed: str) -> dict[str, tuple[int, ...]]:
    """The permissions of all files and folders, and sizes and times of files, except in the allowed folder."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.path != allowed:
                about = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    found[entry.path] = (about.st_mode,)
                    found |= watched(entry.path, allowed)
                else:
                    found[entry.path] = (about.st_mode, about.st_size, about.st_mtime_ns)
    return found


class Case(NamedTuple):
    """The result of a case."""

    kind: str
    end: str
    """"success", the class of the error, or "!" and a description of the failure."""
    took: float
    """Memory in MiB."""


def case(number: int, seed: int, top: Path, kinds: dict[str, Kind]) -> Case:
    choose = random.Random(f"{seed}/{number}")
    name = choose.choices(list(kinds), [kind.weight for kind in kinds.values()])[0]
    kind, folder = kinds[name], top / "case"
    base = top / name.replace(" ", "_")
    if not base.exists():
        base.mkdir()
        kind.make(base)
    shutil.copytree(base, folder)
    damage(choose, folder / choose.choice(kind.damage))
    here = top / "here"
    here.mkdir(exist_ok=True)
    allowed = str(folder / kind.written) if kind.written else ""
    before, temporary, taken = watched(str(top), allowed), tempfile.tempdir, limits.taking()
    tempfile.tempdir = str(here)
    try:
        with (
            warnings.catch_warnings(record=True) as warned,
            redirect_stderr(io.StringIO()),
            chdir(here),
            limits.in_time(PATIENCE),
        ):
            warnings.simplefilter("always")
            kind.read(folder)
        end = "success"
    except FuncvaeError as error:
        end = type(error).__name__
        if not str(error) or "\n" in str(error):
            end = f"! {end} is not one line: {error!s}"
    except BaseException as error:
        end = f"! {type(error).__name__}: {error}"
    finally:
        tempfile.tempdir, took = temporary, taken()
        after = watched(str(top), allowed)
        shutil.rmtree(folder)
    if warned:
        end = f"! warned: {warned[0].message}"
    if after != before:
        changed = sorted(path for path in after.keys() | before.keys() if after.get(path) != before.get(path))
        end = f"! wrote outside its folder: {changed[-1]}"
        shutil.rmtree(here)
    if took > limits.MEMORY:
        end = f"! took {took:.0f} MiB"
    return Case(name, end, took)


def main(argv: list[str] | None = None, kinds: dict[str, Kind] = KINDS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--kind", choices=kinds)
    args = parser.parse_args(argv)
    if args.kind:
        kinds = {args.kind: kinds[args.kind]}
    numbers = range(args.cases) if args.case is None else [args.case]
    ends: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    failed, most = [], 0.0
    shm = Path("/dev/shm")
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "funcvae-fuzz-compiled"))
    )  # not the user's
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as top:
        for number in tqdm(numbers, unit="case", disable=len(numbers) < 1000):
            name, end, took = case(number, args.seed, Path(top), kinds)
            most = max(most, took)
            ends[name]["failure" if end.startswith("!") else end] += 1
            if end.startswith("!"):
                failed.append(f"--seed {args.seed} --case {number} ({name}): {end[2:]}")
    for name, counts in ends.items():
        print(f"{name:18}{counts.total():8,}  " + ", ".join(f"{end} {n:,}" for end, n in sorted(counts.items())))
    print(f"{len(numbers):,} cases, {len(failed)} failures; none took more than {most:.0f} MiB")
    print("\n".join(failed[:20]), end="\n" if failed else "", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
