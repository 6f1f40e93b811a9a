"""The import graph: modules import downwards only, and what is dangerous lives in one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import funcvae

ROOT = Path(funcvae.__file__).parent
FLOORS = [
    {"errors"},
    {"checks"},
    {"files", "random", "tree"},
    {"autograd", "distributions", "machine", "module", "optim", "noise", "bounds", "pareto", "ppca", "processes"},
    {"importance", "reduction"},
    {"heads", "priors"},
    {"vae"},
    {"engine"},
    {"estimators", "shards"},
    {"steps"},
    {"train"},
    {"models", "evaluate", "variance"},
    {"data", "checkpoint", "tracking", "plots"},
    {"pictures", "probes"},
    {"runs"},
    {"reports"},
    {"cli"},
    {"__main__"},
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
EDGES = FLOOR["data"]  # from here up: files, processes, printing, plotting
# The files of a package keep apart, but for these, which they share.
SHARED = {
    "cli": {"cli.options", "cli.stopping"},
    "models": {"models.recipe"},
    "plots": {"plots._arrays", "plots._style"},
    "runs": {f"runs.{name}" for name in ("config", "manifest", "folder", "setup", "grid", "training")},
    "variance": {
        f"variance.{name}" for name in ("blocks", "streaming", "replicates", "statistics", "importance", "comparison")
    },
}
DRAWS = {
    "bernoulli", "dropout", "initial_seed", "manual_seed", "multinomial", "normal", "poisson", "rand", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "random", "randperm", "seed", "set_rng_state",
}  # fmt: skip
DRAWS_IN_PLACE = {
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_",
}  # fmt: skip


def sources():
    """{dotted name within funcvae: syntax tree}; a package goes by its own name, as `models` does."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text())
    return found


SOURCES = sources()


def imports(syntax):
    """Every absolute dotted name that the source imports, wherever in the file, with its line."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def inner(syntax):
    """The imports of funcvae's own modules as (dotted name within funcvae, line); "" is the package itself."""
    for name, line in imports(syntax):
        if name == "funcvae":
            yield "", line
        elif name.startswith("funcvae."):
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in SOURCES:
                parts.pop()
            yield ".".join(parts), line


def attributes(syntax):
    """Every dotted attribute chain in the source, such as torch.random.manual_seed, with its line."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno


def wrong_imports(module, syntax):
    """What the floors forbid in a module, one sentence for each."""
    top, wrong = module.split(".")[0], []
    for name, line in inner(syntax):
        other = name.split(".")[0]
        here = f"funcvae/{module.replace('.', '/')}.py:{line} imports funcvae.{name or '__init__'}"
        if top == "__init__":
            if FLOOR[other] >= EDGES:
                wrong.append(f"{here}, an edge: `import funcvae` brings the library alone")
        elif not other:
            if FLOOR[top] < EDGES:
                wrong.append(f"{here}, which stands on top of it")
        elif top == other and top in SHARED:
            if module != top and name not in SHARED[top]:
                wrong.append(f"{here}: the files of {top}/ share {', '.join(sorted(SHARED[top]))} and nothing else")
        elif FLOOR[other] >= FLOOR[top]:
            wrong.append(f"{here}, floor {FLOOR[other]}, from floor {FLOOR[top]}")
        elif FLOOR[top] == EDGES and FLOOR[other] > FLOOR["module"]:
            wrong.append(f"{here}, floor {FLOOR[other]}: an edge stands on the lowest floors alone")
    return wrong


def forbidden_draws(module, syntax):
    """Uses of torch's global generator and of numpy's and Python's random modules, a sentence for each line."""
    found = [(name, line) for name, line in imports(syntax) if name.split(".")[0] == "random"]
    for name, line in [*imports(syntax), *attributes(syntax)]:
        first, *rest = name.split(".")
        numpys = first in ("np", "numpy") and rest[:1] == ["random"]
        torchs = first == "torch" and bool(rest) and (rest[0] in DRAWS or rest[-1] in DRAWS - {"normal"})
        in_place = bool(rest) and rest[-1] in DRAWS_IN_PLACE and first not in ("_aten", "nn")
        if numpys or torchs or in_place:
            found.append((name, line))
    by_line = {line: name for name, line in found}  # a chain's parts come after it: np.random.f, np.random
    return [f"funcvae/{module.replace('.', '/')}.py:{line} uses {name}" for line, name in by_line.items()]


def users(of):
    """The modules whose imports or attributes mention a name."""
    return {
        module
        for module, syntax in SOURCES.items()
        for name, _ in [*imports(syntax), *attributes(syntax)]
        if of in name.split(".")
    }


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in SOURCES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module):
    wrong = wrong_imports(module, SOURCES[module])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_draws_from_a_global_generator(module):
    found = forbidden_draws(module, SOURCES[module])
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bounds", "from funcvae import estimators"),
        ("tree", "from funcvae.random import key"),
        ("heads", "import funcvae"),
        ("heads", "from funcvae import priors"),
        ("data", "from funcvae import plots"),
        ("checkpoint", "from funcvae.train import TrainState"),
        ("models.burda", "from funcvae.models.mnist import mnist_vae"),
        ("models.burda", "from funcvae.models import RECIPES"),
        ("plots.images", "from funcvae.plots.latent import latent_scatter"),
        ("variance.sweep", "from funcvae.variance.compare import compare"),
        ("plots.images", "from funcvae.plots import save"),
        ("plots.images", "from funcvae import tracking"),
        ("plots.images", "from funcvae.vae import VAE"),
        ("estimators", "def f():\n    from funcvae.data import load"),
        ("__init__", "from funcvae import cli"),
    ],
)
def test_a_wrong_import_is_named(module, source):
    (message,) = wrong_imports(module, ast.parse(source))
    assert message.startswith(f"funcvae/{module.replace('.', '/')}.py:")
    assert f"imports funcvae.{'__init__' if source == 'import funcvae' else ''}" in message


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
def test_a_draw_from_a_global_generator_is_seen(source):
    assert forbidden_draws("data", ast.parse(source))


def test_only_tree_knows_torchs_pytrees():
    assert users("_pytree") == {"tree"}


def test_only_module_calls_functional_call():
    assert users("functional_call") == {"module"}


def test_importing_the_library_brings_no_edge():
    heavy = ["torch._dynamo", "torchvision", "scipy", "matplotlib", "tyro", "safetensors", "tensorboard", "visdom"]
    heavy += [f"funcvae.{module}" for module, floor in FLOOR.items() if floor >= EDGES]
    program = f"import sys, funcvae; print(*sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], "`import funcvae` imports these"
