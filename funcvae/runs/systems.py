"""Finds systems: the named ones, and own ones in a Python file or module; and identifies the code of own ones."""

import hashlib
import importlib
import importlib.util
import inspect
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from funcvae._support import checks, files
from funcvae.errors import BadData, BadType, BadValue, Missing, unknown
from funcvae.models import SYSTEMS, System

__all__ = ["SystemSource", "differs_from", "find_system", "replay_command", "resume_command", "source_of", "systems_in"]


class SystemSource(TypedDict):
    """Where an own system is defined."""

    source: str | None
    """FILE.py:NAME or package.module:NAME; None if it was not defined in a file."""
    sha256: str | None
    """Of that file, or else of the source of the system's functions; None if Python does not know it."""


def find_system(system: System | str) -> System:
    """The system that a name or FILE.py:NAME or package.module:NAME stands for; runs the code of the file or module.

    NAME is the name of the `System`, which need not be that of a variable. A `System` is returned unchanged.

    Raises:
        BadValue: no such system; the message has the nearest name. Or an own system has the name of a named one.
        BadType: NAME is something else than a System.
        Missing: no such file or module.
        BadData: the code fails; the message has its line.
    """
    if isinstance(system, System):
        return _distinct(system, "")
    if checks.text("system", system) in SYSTEMS:
        return SYSTEMS[system]
    if system.endswith(".py"):
        raise BadValue(f"{system} is a file: give FILE.py:NAME, one of `funcvae list systems --from {system}`")
    where, colon, name = system.rpartition(":")
    if not colon:
        raise unknown("system", system, SYSTEMS)
    module = _module(where)
    found = _systems_of(module, where)
    if name in found:
        return found[name]
    if hasattr(module, name) and not isinstance(getattr(module, name), System):
        what, known = checks.describe(getattr(module, name)), ", ".join(sorted(found))
        raise BadType(f"{system} is {what}: it must be the name of a funcvae.System, which are: {known}")
    raise BadValue(f"{where}: {unknown('system', name, found)}")


@checks.arguments
def systems_in(where: str) -> dict[str, System]:
    """The systems in a file or module, by name; runs its code. Raises: see `find_system`."""
    return _systems_of(_module(where), where)


def source_of(system: System) -> SystemSource | None:
    """Where an own system is defined; None for a named system."""
    if SYSTEMS.get(system.name) is system:
        return None
    for module in (sys.modules.get(system.model.__module__), *list(sys.modules.values())):
        file = getattr(module, "__file__", None)
        if module and file and any(value is system for value in list(vars(module).values())):
            content = vars(module).get(_CONTENT) or files.read(Path(file), limit=files.JSON_LIMIT)
            digest = hashlib.sha256(content).hexdigest()
            return SystemSource(source=f"{_place(module, Path(file))}:{system.name}", sha256=digest)
    functions = [value for value in (system.model, *vars(system.recipe).values()) if inspect.isroutine(value)]
    try:
        code = "".join(map(inspect.getsource, functions))
    except (OSError, TypeError):  # typed into a console
        return {"source": None, "sha256": None}
    return {"source": None, "sha256": hashlib.sha256(code.encode()).hexdigest()}


def differs_from(system: System, then: Mapping[str, Any] | None) -> str | None:
    """The name of the code of an own system, if it is known to differ from that in a manifest."""
    now = source_of(system)
    if not now or not then or None in (now["sha256"], then["sha256"]) or now["sha256"] == then["sha256"]:
        return None
    return now["source"].rpartition(":")[0] if now["source"] else f"the code of {system.name}"


def resume_command(run: Path, system: System) -> str:
    """The command that resumes the run in a folder."""
    return shlex.join(["funcvae", "train", *_names(system), "--resume", str(run)])


def replay_command(run: Path, system: System, step: int | None) -> str:
    """The command that replays a step of the run in a folder."""
    return shlex.join(["funcvae", "replay", str(run), str(step), *(f"--system={name}" for name in _names(system))])


def _names(system: System) -> list[str]:
    """The name of an own system in commands; empty for a named system, or if the system was not defined in a file."""
    source = source_of(system)
    return [source["source"]] if source and source["source"] else []


def _distinct(system: System, where: str) -> System:
    """Raises BadValue if an own system has the name of a named one."""
    if SYSTEMS.get(system.name, system) is not system:
        raise BadValue(f"{where}the system {system.name!r} has the name of a named system: give it another name")
    return system


def _systems_of(module: ModuleType, where: str) -> dict[str, System]:
    found: dict[str, System] = {}
    for system in vars(module).values():
        if isinstance(system, System) and found.setdefault(system.name, _distinct(system, f"{where}: ")) != system:
            raise BadValue(f"{where} has two systems of the name {system.name!r}: give one another name")
    if not found:
        raise BadValue(f"{where} has no funcvae.System at its top level")
    return found


_CONTENT = "__funcvae_source__"
"""In a module that was made from a file here: the bytes of the file, to hash the code that runs."""


def _module(where: str) -> ModuleType:
    """The module of a file FILE.py, or the module of this name."""
    if not where.endswith(".py"):
        with _importing(Path.cwd(), where, f"{where.rpartition('.')[2]}.py"):
            return importlib.import_module(where)
    path = Path(where).resolve()
    content = files.read(Path(where), limit=files.JSON_LIMIT)
    name, module = path.stem, sys.modules.get(path.stem)
    if module is not None and getattr(module, "__file__", None) != str(path):  # another module has this name
        name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        module = sys.modules.get(name)
    if module is not None and vars(module).get(_CONTENT, content) == content:
        return module
    return _run(name, path, where, content)


def _run(name: str, path: Path, where: str, content: bytes) -> ModuleType:
    """Runs a file as a module of this name, which pickle then finds."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(name)
    vars(module)[_CONTENT] = content
    sys.modules[name] = module
    try:
        with _importing(path.parent, where, str(path)):
            exec(compile(content, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


@contextmanager
def _importing(folder: Path, where: str, file: str) -> Iterator[None]:
    """Modules in this folder can be imported inside. An error inside becomes a BadData with the line of the file."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and f"{where}.".startswith(f"{absent}."):
            raise Missing(f"there is no module {where}: give FILE.py:NAME or package.module:NAME") from None
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        message = str(error)
        if isinstance(error, SyntaxError):
            lines, message = [*lines, (error.filename or "", error.lineno)], error.msg
        place = [f" in line {line}" for name, line in lines if name.endswith(file)][-1:]
        kind = "".join([type(error).__name__, *place])
        raise BadData(f"{where} cannot be imported: {kind}: {checks.one_line(message)}") from None
    finally:
        sys.path.remove(str(folder))


def _place(module: ModuleType, file: Path) -> str:
    """The name of a module in a package; or else its file, relative to the current folder if it is in there."""
    name = module.__spec__.name if module.__spec__ else module.__name__
    if "." in name:
        return name
    file = file.resolve()
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)
