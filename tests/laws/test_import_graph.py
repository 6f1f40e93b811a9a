"""The import graph and the public names: imports point one way, and every public name is listed, unique and exists."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import funcvae

ROOT = Path(funcvae.__file__).parent
ORDER = [
    "errors", "_support.checks", "_support.examples", "_support.progress", "_support.tables", "_support.files",
    "_support.pickling", "tree", "threads", "_support.reprs", "_support.autograd", "compilation", "random",
    "_support.keyed_draws", "_support.finding_draws", "distributions", "heads", "priors", "bounds", "noise",
    "optim", "modules", "batching", "model", "interop", "estimators", "distributed", "train", "evaluate",
    "variance", "models", "data", "figures", "tracking", "runs", "cli", "__main__",
]  # fmt: skip
MOST_PARAMETERS = 8
DRAWS = {
    "bernoulli", "dropout", "initial_seed", "manual_seed", "multinomial", "normal", "poisson", "rand", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "random", "randperm", "seed", "set_rng_state",
}  # fmt: skip
DRAWS_IN_PLACE = {
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_",
}  # fmt: skip
TYPE_NAME = re.compile(r"[A-Z]+[a-z]|[A-Z]$")  # unlike the name of a constant
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def sources():
    """{dotted name within funcvae: syntax tree} of every module. A package has its own name; funcvae itself has ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


SOURCES = sources()
PACKAGES = {name.rpartition(".")[0] for name in SOURCES if name} - {""}
PUBLIC = [name for name in SOURCES if not any(part.startswith("_") for part in name.split("."))]


def imports(syntax):
    """Every dotted name that the source imports anywhere, with its line."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def inner(syntax):
    """The imports of funcvae's own modules as (dotted name within funcvae, line); "" is funcvae itself."""
    for name, line in imports(syntax):
        first, *parts = name.split(".")
        if first == "funcvae" and parts != ["__version__"]:
            while parts and ".".join(parts) not in SOURCES:
                parts.pop()
            yield ".".join(parts), line


def attributes(syntax):
    """Every dotted attribute chain in the source, such as torch.random.manual_seed, with its line."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno


def at(module, line):
    parts = ["funcvae", *filter(None, module.split("."))]
    return f"{'/'.join(parts)}{'/__init__' * (module in PACKAGES | {''})}.py:{line}"


def place(module):
    """The position of a module in ORDER, or None for modules outside it, such as funcvae itself."""
    parts = module.split(".")
    unit = ".".join(parts[: 2 if parts[0] == "_support" else 1])
    return ORDER.index(unit) if unit in ORDER else None


def wrong_imports(module, syntax):
    """A message for each import of a module that the order forbids."""
    wrong = []
    for name, line in inner(syntax):
        within = module.split(".")[0] == name.split(".")[0] in PACKAGES - {"_support"}
        if module and not within and (place(name) is None or place(name) >= place(module)):
            wrong.append(
                f"{at(module, line)} imports funcvae{'.' * bool(name) + name}, which does not come before it in ORDER"
            )
    return wrong


def cycle(modules):
    """A cycle of imports among modules of one package, {name: syntax tree}, or None."""
    graph = {name: {other for other, _ in inner(syntax)} & set(modules) for name, syntax in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def forbidden_draws(module, syntax):
    """A message for each line that uses torch's global generator, or numpy's or Python's random module."""
    found = [(name, line) for name, line in imports(syntax) if name.split(".")[0] == "random"]
    for name, line in [*imports(syntax), *attributes(syntax)]:
        first, *rest = name.split(".")
        numpys = first in ("np", "numpy") and rest[:1] == ["random"]
        torchs = first == "torch" and bool(rest) and (rest[0] in DRAWS or rest[-1] in DRAWS - {"normal"})
        in_place = bool(rest) and rest[-1] in DRAWS_IN_PLACE and first not in ("_aten", "nn")
        if numpys or torchs or in_place:
            found.append((name, line))
    by_line = {line: name for name, line in found}  # keeps the longest chain of a line: np.random.f, then np.random
    return [f"{at(module, line)} uses {name}" for line, name in by_line.items()]


def keeps(law):
    """Asserts that a law returns no message for any module."""
    wrong = [message for module, syntax in SOURCES.items() for message in law(module, syntax)]
    assert not wrong, "\n".join(wrong)


def users(of):
    """The modules whose imports or attributes mention a name."""
    return {
        module
        for module, syntax in SOURCES.items()
        for name, _ in [*imports(syntax), *attributes(syntax)]
        if of in name.split(".")
    }


def listed(syntax):
    """The names in `__all__`, or None without an `__all__`."""
    for node in syntax.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def wrong_list(module, syntax, namespace):
    """A message for each mistake in a public module's `__all__`."""
    names = listed(syntax)
    if names is None:
        return [f"{at(module, 1)} has no __all__"]
    twice = {name for name in names if names.count(name) > 1}
    wrong = [f"{name} is twice in __all__" for name in twice]
    wrong += [f"{name} in __all__ does not exist" for name in names if not hasattr(namespace, name)]
    return [f"{at(module, 1)}: {what}" for what in wrong]


def shadowed(package, syntax, modules):
    """The modules of a package with the same name as something that the package imports from another module."""
    full = f"funcvae.{package}".rstrip(".")
    taken = {
        alias.asname or alias.name
        for node in ast.walk(syntax)
        if isinstance(node, ast.ImportFrom) and node.module != full
        for alias in node.names
    }
    prefix = f"{package}." if package else ""
    return {name for name in taken & set(listed(syntax) or ()) if prefix + name in modules}


def types_twice(modules):
    """{name: modules} for every name of a public type that several modules define."""
    found = defaultdict(list)
    for module, syntax in modules.items():
        for node in syntax.body:
            name = node.name if isinstance(node, ast.ClassDef) else ""
            if isinstance(node, ast.Assign):
                name = ast.unparse(node.targets[0])
            if TYPE_NAME.match(name) and name in (listed(syntax) or ()):
                found[name].append(module)
    return {name: places for name, places in found.items() if len(places) > 1}


def long_lists(module, syntax):
    """A message for each private function with more than MOST_PARAMETERS parameters."""
    public, wrong = set(listed(syntax) or ()) if module in PUBLIC else set(), []

    def visit(node, shown, in_class):
        """`shown`: whether definitions in this node can be public."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FUNCTIONS):
                name, args = getattr(child, "name", "lambda"), child.args
                known = name in public if not in_class else name.endswith("__") or not name.startswith("_")
                count = len(args.posonlyargs + args.args + args.kwonlyargs)
                if in_class and "staticmethod" not in map(ast.unparse, child.decorator_list):
                    count -= 1
                if count > MOST_PARAMETERS and not (shown and known):
                    wrong.append(f"{at(module, child.lineno)}: {name} takes {count} parameters")
                visit(child, False, False)
            elif isinstance(child, ast.ClassDef):
                visit(child, shown and not in_class and child.name in public, True)
            else:
                visit(child, shown, in_class and isinstance(child, ast.If))

    visit(syntax, True, False)
    return wrong


def run(program):
    """The words that a Python program prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_every_module_has_a_place_in_the_order():
    assert {name for name in SOURCES if place(name) is None} == {"", "_support"}


def test_imports_point_one_way():
    keeps(wrong_imports)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_modules_of_a_package_import_each_other_without_a_cycle(package):
    assert cycle({name: syntax for name, syntax in SOURCES.items() if f"{name}.".startswith(f"{package}.")}) is None


def test_nothing_draws_from_a_global_generator():
    keeps(forbidden_draws)


def test_only_tree_uses_torchs_pytrees():
    assert users("_pytree") == {"tree"}


def test_only_modules_calls_functional_call():
    assert users("functional_call") == {"modules"}


def test_public_modules_list_names_that_exist():
    def wrong(module, syntax):
        return wrong_list(module, syntax, import_module(f"funcvae.{module}".rstrip("."))) if module in PUBLIC else []

    keeps(wrong)


def test_no_module_has_the_name_of_a_function_of_its_package():
    assert [found for package in PACKAGES | {""} for found in shadowed(package, SOURCES[package], SOURCES)] == []


def test_no_two_public_types_share_a_name():
    assert not types_twice({module: SOURCES[module] for module in PUBLIC})


def test_private_functions_take_few_parameters():
    keeps(long_lists)


def test_dir_of_the_library_lists_its_public_names():
    assert dir(funcvae) == sorted([*funcvae.__all__, "__version__"])
    modules = {name for name in funcvae.__all__ if isinstance(getattr(funcvae, name), ModuleType)}
    assert modules == {name for name in PUBLIC if name and "." not in name} - {"cli"}


def test_importing_the_library_does_not_import_torch():
    assert run("import sys, funcvae; print(*{'torch', 'numpy', 'matplotlib'} & set(sys.modules))") == []


def test_importing_the_core_imports_no_module_for_files_or_figures():
    heavy = ["torch._dynamo", "torchvision", "scipy", "matplotlib", "cyclopts", "safetensors", "tensorboard", "visdom"]
    heavy += [f"funcvae.{name}" for name in ORDER[ORDER.index("data") :]]
    core = ", ".join(f"fv.{name}" for name in ("estimators", "train", "evaluate", "variance", "models"))
    assert run(f"import sys, funcvae as fv; {core}; print(*sorted(set({heavy}) & set(sys.modules)))") == []


def test_packages_are_available_without_importing_them():
    names = (
        "fv.data.load",
        "fv.tracking.tensorboard",
        "fv.figures.save",
        "fv.runs.load",
    )  # none of them imports a later package
    assert run(f"import funcvae as fv; print(*(f.__name__ for f in ({', '.join(names)})))") == [
        "load", "tensorboard", "save", "load",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bounds", "from funcvae import estimators"),
        ("tree", "from funcvae.random import key"),
        ("heads", "import funcvae"),
        ("heads", "import funcvae as fv"),
        ("heads", "from funcvae import priors"),
        ("optim.adaptive", "from funcvae.modules import Params"),
        ("data.readers", "from funcvae import figures"),
        ("estimators.table", "def f():\n    from funcvae.data import load"),
        ("_support.checks", "from funcvae._support import files"),
        ("_support.files", "from funcvae import tree"),
        ("tracking.progress", "from funcvae.runs.config import Config"),
        ("errors", "from funcvae import _support"),
    ],
)
def test_the_law_finds_a_forbidden_import(module, source):
    (message,) = wrong_imports(module, ast.parse(source))
    assert message.startswith(f"funcvae/{module.replace('.', '/')}.py:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runs.config", "from funcvae import __version__"),
        ("figures.images", "from funcvae.figures import latent"),
        ("train.loop", "from funcvae.estimators import Estimator"),
        ("_support.autograd", "from funcvae import tree\nfrom funcvae._support import checks"),
    ],
)
def test_the_law_accepts_an_allowed_import(module, source):
    assert wrong_imports(module, ast.parse(source)) == []


def test_the_law_finds_a_cycle():
    images, points = "from funcvae.figures import points", "from funcvae.figures import images"
    package = "from funcvae.figures.images import image_grid"
    for back, found in (("", False), (points, True), ("from funcvae.figures import save", True)):
        modules = {"figures": package, "figures.images": images, "figures.points": back}
        assert bool(cycle({name: ast.parse(source) for name, source in modules.items()})) == found


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from random import shuffle",
        "from numpy.random import default_rng",
        "np.random.default_rng(0)",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed_all(0)\ntorch.random.manual_seed(0)",
        "torch.randn(3)",
        "from torch import rand",
        "torch.normal(0, 1)",
        "x.normal_()",
        "torch.empty(3).uniform_()",
    ],
)
def test_the_law_finds_a_draw_from_a_global_generator(source):
    assert forbidden_draws("data", ast.parse(source))


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("x = 1", "has no __all__"),
        ("__all__ = ['x', 'y']\nx = 1", "y in __all__ does not exist"),
        ("__all__ = ['x', 'x']\nx = 1", "x is twice in __all__"),
    ],
)
def test_the_law_finds_a_wrong_list_of_names(source, wrong):
    namespace = ModuleType("module")
    exec(source, vars(namespace))
    (message,) = wrong_list("bounds", ast.parse(source), namespace)
    assert message.endswith(wrong)


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("figures", "__all__ = ['images']\nfrom funcvae.figures.images import images", {"images"}),
        ("figures", "__all__ = ['images']\nfrom funcvae.figures import images", set()),
        ("", "__all__ = ['tree']\nif True:\n    from funcvae.errors import tree", {"tree"}),
        ("", "__all__ = ['tree']\nfrom funcvae import tree", set()),
    ],
)
def test_the_law_finds_a_module_with_the_name_of_a_function(package, source, found):
    assert shadowed(package, ast.parse(source), SOURCES) == found


def test_the_law_finds_two_types_of_one_name():
    alias = ast.parse("__all__ = ['LIMIT', 'Row']\nRow = dict[str, float]\nLIMIT = 1")
    public = ast.parse("__all__ = ['LIMIT', 'Row']\nclass Row: pass\nLIMIT = 2")
    private = ast.parse("__all__ = ['LIMIT']\nclass Row: pass\nLIMIT = 2")
    assert types_twice({"a": alias, "b": public}) == {"Row": ["a", "b"]}
    assert types_twice({"a": alias, "b": private}) == {}


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("def f({9}): pass", ["f takes 9"]),
        ("def f({8}, *args, **kwargs): pass", []),
        ("def f(*, {9}): pass", ["f takes 9"]),
        ("__all__ = ['f']\ndef f({9}): pass", []),
        ("__all__ = ['f']\ndef f({9}):\n    def g({9}): pass", ["g takes 9"]),
        ("__all__ = ['f']\ndef f():\n    return lambda {9}: 0", ["lambda takes 9"]),
        ("__all__ = ['C']\nclass C:\n    def f(self, {9}): pass", []),
        ("__all__ = ['C']\nclass C:\n    def __call__(self, {9}): pass\n    def _f(self, {9}): pass", ["_f takes 9"]),
        ("__all__ = ['C']\nclass C:\n    def _f(self, {8}): pass", []),
        ("class C:\n    def f(self, {9}): pass", ["f takes 9"]),
        ("if True:\n    def f({9}): pass", ["f takes 9"]),
    ],
)
def test_the_law_finds_a_long_list_of_parameters(source, wrong):
    for n in (8, 9):
        source = source.replace(f"{{{n}}}", ", ".join(f"a{i}" for i in range(n)))
    found = long_lists("bounds", ast.parse(source))
    assert [message.split(": ")[1] for message in found] == [f"{start} parameters" for start in wrong]
