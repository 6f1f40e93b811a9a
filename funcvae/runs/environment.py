"""The environment of a run: versions, machine and settings that may change its bits."""

import hashlib
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funcvae import __version__, compilation, data
from funcvae.errors import BadData, BadValue
from funcvae.runs.config import Config, config_sha256

__all__ = ["describe", "difference_text", "differences", "manifest", "numerics"]


def describe(config: Config, processes: int = 1) -> dict[str, Any]:
    """The present versions, machine and settings."""
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


def manifest(config: Config, dataset: data.Dataset, processes: int = 1) -> dict[str, Any]:
    """The content of `manifest.json`."""
    shape = list(dataset.train.shape[1:])
    return {
        "command": sys.argv,
        **describe(config, processes),
        "seed": config.seed,
        "config_sha256": config_sha256(config),
        "data": {"source": config.data, "train": len(dataset.train), "test": len(dataset.test), "shape": shape},
        "data_sha256": dataset.sha256(),
    }


def shared_facts(config: Config, dataset: data.Dataset) -> dict[str, Any]:
    """The values in which processes that train one model must agree."""
    local = {"out", "data", "data_dir"}  # paths may differ between machines
    fixed = {name: value for name, value in asdict(config).items() if name not in local}
    return {**fixed, **bit_settings(config), "the data's sha256": dataset.sha256()}


def bit_settings(config: Config) -> dict[str, Any]:
    """The code, versions and settings of this process that may change bits."""
    now = describe(config)
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))
    return {name: {**now, **now["versions"]}[name] for name in _BIT_FIELDS} | {"the code's sha256": code.hexdigest()}


def check_manifest(content: Mapping[str, Any], path: Path) -> None:
    """Raises BadData unless this is the manifest of a run that this version of funcvae can read."""
    try:
        made_by = content["versions"]["funcvae"]
        if made_by.split(".")[:2] != __version__.split(".")[:2]:  # a new minor version may change what is in a run
            reason = f"{path.parent} was made by funcvae {made_by}, this is {__version__}"
            raise BadData(f"{reason}: train it again, or use that one")
        about = content["data"]
        if not all(_is_count(n) for n in (about["train"], about["test"])):
            raise TypeError(f"data are {about}")
        if not (isinstance(about["shape"], list) and all(_is_count(n) for n in about["shape"])):
            raise TypeError(f"shape is {about['shape']}")
        if not (
            _is_count(content["threads"]) and content["threads"] <= 1024 and isinstance(content["data_sha256"], str)
        ):
            raise TypeError(f"threads is {content['threads']!r}")
        if not isinstance(content["config_sha256"], str):
            raise TypeError(f"config_sha256 is {content['config_sha256']!r}")
        if not isinstance(content.get("resumed", []), list):
            raise TypeError(f"resumed is {content['resumed']!r}")
    except KeyError as error:
        raise BadData(f"{path} is not that of a run: {error} is missing") from None
    except (AttributeError, TypeError) as error:
        raise BadData(f"{path} is not that of a run: {error}") from None


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that may change bits and differ between two environments, as (then, now)."""

    def flat(content: Mapping[str, Any]) -> dict[str, Any]:
        versions = content.get("versions")
        return {**content, **(versions if isinstance(versions, Mapping) else {})}

    then, now = flat(then), flat(now)
    return {name: (then.get(name), now.get(name)) for name in _BIT_FIELDS if then.get(name) != now.get(name)}


def difference_text(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Describes differences between two environments."""
    return ", ".join(f"{name} was {then} and is {now} now" for name, (then, now) in differing.items())


@contextmanager
def numerics(config: Config, threads: int | None = None) -> Iterator[None]:
    """Sets torch's settings as a configuration requires, and restores them at the end.

    Raises:
        BadValue: (from within) an operation has no deterministic algorithm, and no other is allowed; or a step cannot
            be compiled, though the run's record would say that it was.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    try:
        with compilation.precision(config.precision), warnings.catch_warnings():
            warnings.simplefilter("error", compilation.Uncompiled)
            yield
    except compilation.Uncompiled as error:
        raise BadValue(
            f"the run's step is compiled, and {error.reason}; a run made with --no-compile does without"
        ) from None
    except RuntimeError as error:
        if config.deterministic and "deterministic" in str(error):
            reason = str(error).split(". ")[0].splitlines()[0]
            raise BadValue(f"--deterministic cannot be kept: {reason}; leave it out, or use another device") from None
        raise
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(before)


_BIT_FIELDS = (
    "torch", "numpy", "cuda", "funcvae", "cpu", "cpu_capability", "device", "threads", "float32_matmul_precision",
    "deterministic", "compile", "processes",
)  # fmt: skip


def _is_count(n: Any) -> bool:
    return type(n) is int and 0 < n < 2**31


def _revision() -> str | None:
    """The commit of the source, with a + where it was changed; None where it is no checkout."""
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it lies in a checkout of something else
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", str(folder.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
