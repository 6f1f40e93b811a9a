"""The variance of Monte-Carlo gradient estimators in variational autoencoders, as pure functions on `torch.func`.

    import funcvae as fv

Every name below is imported when it is first used, so `import funcvae` alone is fast.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funcvae import (
        batching,
        bounds,
        compilation,
        data,
        distributed,
        distributions,
        errors,
        estimators,
        evaluate,
        figures,
        heads,
        interop,
        model,
        models,
        modules,
        noise,
        optim,
        priors,
        random,
        runs,
        threads,
        tracking,
        train,
        tree,
        variance,
    )
    from funcvae.estimators import Claims, Estimate, Estimator, Weights, surrogate
    from funcvae.interop import from_module, to_module
    from funcvae.model import VAE, Trained, vae
    from funcvae.models import System
    from funcvae.modules import Functional, functional

__version__ = "0.11.0"

__all__ = [
    "VAE", "Claims", "Estimate", "Estimator", "Functional", "System", "Trained", "Weights", "batching", "bounds",
    "compilation", "data", "distributed", "distributions", "errors", "estimators", "evaluate", "figures", "from_module",
    "functional", "heads", "interop", "model", "models", "modules", "noise", "optim", "priors", "random", "runs",
    "surrogate", "threads", "to_module", "tracking", "train", "tree", "vae", "variance",
]  # fmt: skip

_DEFINED_IN = {
    "VAE": "model",
    "Trained": "model",
    "vae": "model",
    "from_module": "interop",
    "to_module": "interop",
    "Functional": "modules",
    "functional": "modules",
    "Claims": "estimators",
    "Estimate": "estimators",
    "Estimator": "estimators",
    "Weights": "estimators",
    "System": "models",
    "surrogate": "estimators",
}
"""The module that defines each name, for names that are not modules."""


def __getattr__(name: str) -> Any:
    """Imports a public name from the module that defines it (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'funcvae' has no attribute {name!r}")
    if name not in _DEFINED_IN:
        return import_module(f"funcvae.{name}")
    value = getattr(import_module(f"funcvae.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion in editors."""
    return sorted([*__all__, "__version__"])


if "pdoc" in sys.modules:  # pdoc imports no name lazily, and looks for the format of docstrings in each module
    __docformat__ = "google"
    for _name in __all__:
        __getattr__(_name)
    for _name in [name for name in sys.modules if name.startswith("funcvae.")]:
        vars(sys.modules[_name])["__docformat__"] = __docformat__
