"""The environment of a run: versions, machine and settings that may change its bits."""

import hashlib
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast

import numpy as np
import torch
from msgspec import Meta

from funcvae import __version__, compilation, data
from funcvae._support import examples, files
from funcvae.errors import BadData, BadValue
from funcvae.runs.config import Config, config_sha256
from funcvae.runs.systems import SystemSource, source_of
from funcvae.train import streaming

__all__ = [
    "Manifest", "check_same_version", "describe", "difference_text", "differences", "is_of_earlier_version", "manifest",
    "numerics", "parse_manifest",
]  # fmt: skip

Size = Annotated[int, Meta(ge=1, lt=2**31)]


class _Versions(TypedDict):
    funcvae: Annotated[str, Meta(pattern=r"^\d{1,9}\.\d{1,9}")]


class _Data(TypedDict):
    train: Size
    test: Size
    shape: list[Size] | dict[str, list[Size]]


class _Versioned(TypedDict):
    versions: _Versions


class Manifest(_Versioned):
    """The fields of `manifest.json` that are read; it has more."""

    threads: Annotated[int, Meta(ge=1, le=1024)]
    config_sha256: str
    data: _Data
    data_sha256: str
    system: NotRequired[SystemSource]
    resumed: NotRequired[list[dict[str, Any]]]


def describe(config: Config, processes: int = 1) -> dict[str, Any]:
    """The current versions, machine and settings."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    on_cuda = config.device == "cuda"
    return {
        "versions": {**versions, "cuda": torch.version.cuda if on_cuda else None, "funcvae": __version__},
        "revision": _revision(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if on_cuda else config.device,
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "compile": config.compile,
        "processes": "any" if config.shards else processes,
    }


def manifest(config: Config, dataset: data.Dataset, data_sha256: str, processes: int = 1) -> Manifest:
    """The content of `manifest.json` for a new run."""
    shape = examples.each(lambda x: list(x.shape[1:]), streaming.first(dataset.train))
    sizes = {"train": streaming.count(dataset.train), "test": streaming.count(dataset.test)}
    content = {
        "command": sys.argv,
        **describe(config, processes),
        "seed": config.seed,
        "config_sha256": config_sha256(config.content()),
        "data": {"source": config.data, **sizes, "shape": shape},
        "data_sha256": data_sha256,
    }
    if source := source_of(config.system):
        content["system"] = source
    return cast(Manifest, content)


def shared_facts(config: Config, data_sha256: str) -> dict[str, Any]:
    """The values that must be equal in all processes that train one model."""
    paths = {"out", "data", "data_dir"}  # may differ between machines
    fixed = {name: value for name, value in config.content().items() if name not in paths}
    return {**fixed, **bit_settings(config), "the data's sha256": data_sha256}


def bit_settings(config: Config) -> dict[str, Any]:
    """The code, versions and settings of this process that may change bits."""
    now = describe(config)
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))
    facts = {name: {**now, **now["versions"]}[name] for name in _BIT_FIELDS} | {"the code's sha256": code.hexdigest()}
    source = source_of(config.system)
    return facts | ({"the system's sha256": source["sha256"]} if source else {})


def parse_manifest(content: dict[str, Any], path: Path) -> Manifest:
    """The manifest in the JSON object of a file. Raises BadData if a field is wrong, or a later version made it."""
    with files.reading(path, "the manifest of a run"):
        if _minor(made := files.typed(content, _Versioned)) > _THIS_MINOR:
            raise BadData(f"{_made_by(made, path.parent)}: install that version")
        files.typed(content, Manifest)
    return cast(Manifest, content)  # with all fields


def is_of_earlier_version(manifest: _Versioned) -> bool:
    """Whether an earlier minor version made the run, which may have computed other bits."""
    return _minor(manifest) < _THIS_MINOR


def check_same_version(manifest: _Versioned, path: Path) -> None:
    """Raises BadData if another minor version made the run in a folder."""
    if is_of_earlier_version(manifest):
        advice = "it can be looked at and evaluated; to resume or verify it, install that version"
        raise BadData(f"{_made_by(manifest, path)}: {advice}")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that may change bits and differ between two environments, each as (then, now)."""

    then, now = ({**content, **content.get("versions", {})} for content in (then, now))
    return {name: (then.get(name), now.get(name)) for name in _BIT_FIELDS if then.get(name) != now.get(name)}


def difference_text(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Describes the result of `differences`."""
    return ", ".join(f"{name} was {then} and is {now} now" for name, (then, now) in differing.items())


@contextmanager
def numerics(config: Config, threads: int | None = None) -> Iterator[None]:
    """Sets torch's settings as a configuration requires, and restores them at the end.

    Raises BadValue if `deterministic` is set and an operation inside has no deterministic algorithm, or if `compile` is
    set and the step cannot be compiled.
    """
    deterministic, before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    try:
        with compilation.precision(config.precision), warnings.catch_warnings():
            warnings.simplefilter("error", compilation.Uncompiled)
            yield
    except compilation.Uncompiled as error:
        raise BadValue(f"{error.reason}; train with --no-compile (compile=False)") from None
    except RuntimeError as error:
        if config.deterministic and "deterministic" in str(error):
            reason = str(error).split(". ")[0].splitlines()[0]
            raise BadValue(f"deterministic is not possible: {reason}; train without it, or on another device") from None
        raise
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(before)


_BIT_FIELDS = (
    "torch", "numpy", "cuda", "funcvae", "cpu", "cpu_capability", "device", "threads", "float32_matmul_precision",
    "deterministic", "compile", "processes",
)  # fmt: skip


def _minor(manifest: _Versioned) -> list[int]:
    """The first two numbers of a version."""
    return [int(number) for number in re.findall(r"\d+", manifest["versions"]["funcvae"])[:2]]


_THIS_MINOR = _minor({"versions": {"funcvae": __version__}})


def _made_by(manifest: _Versioned, path: Path) -> str:
    return f"{path} was made by funcvae {manifest['versions']['funcvae']}, this is {__version__}"


def _revision() -> str | None:
    """The commit of the source, followed by + if files were modified; None outside a git checkout."""
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # fails if the checkout is of another project
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", str(folder.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
