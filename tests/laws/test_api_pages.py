"""The API pages: every public name has a useful docstring, and `pdoc --math funcvae` shows it."""

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest
from pdoc import doc_ast
from pdoc.doc import Module, Variable

import funcvae
from funcvae import estimators

LEAST = 40  # characters of a docstring


def public(module):
    """A public module and all public modules in it."""
    inner = [value for value in (getattr(module, name) for name in module.__all__) if isinstance(value, ModuleType)]
    return [module, *(each for part in inner for each in public(part))]


MODULES = public(funcvae)


def docstring_of_variable(module, name):
    """The string under the assignment of a name, in the module that assigns it."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return docstring_of_variable(import_module(node.module), name)
    return doc_ast.walk_tree(module).var_docstrings.get(name, "")


def problems(module):
    """A message for each name in a module's `__all__`, and for the module, that has no docstring or a short one."""
    found = {"": inspect.getdoc(module) or ""}
    for name, member in Module(module).members.items():
        found[name] = member.docstring
        if isinstance(member, Variable) and not member.docstring:
            # pdoc finds the docstring of a variable only on the page of the module that assigns it.
            found[name] = docstring_of_variable(module, name)
            if f"`{name}`" not in found[""] and name not in doc_ast.walk_tree(module).var_docstrings:
                yield f"{module.__name__}.{name} is not in the docstring of {module.__name__}, which imports it"
    for name, docstring in found.items():
        if len(docstring) < LEAST:
            yield f"{module.__name__}.{name}".rstrip(".") + f" has a docstring of {len(docstring)} characters"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name of a public module: its page} of the command in the guide."""
    out = tmp_path_factory.mktemp("pages")
    command = [sys.executable, "-m", "pdoc", "--math", "funcvae", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = [path for path in out.rglob("*.html") if path.name != "index.html"]
    return {".".join(path.relative_to(out).with_suffix("").parts): path.read_text() for path in found}


def test_every_public_name_has_a_docstring():
    wrong = [message for module in MODULES for message in problems(module)]
    assert not wrong, "\n".join(wrong)


def test_the_pages_show_every_public_name(pages):
    assert set(pages) == {module.__name__ for module in MODULES}
    for module in MODULES:
        names = {name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)}
        assert names <= set(re.findall(r'<section id="(\w+)">', pages[module.__name__])), module.__name__
    assert set(estimators.TABLE) <= set(re.findall(r'<section id="(\w+)">', pages["funcvae.estimators"]))


def test_the_pages_show_formulas_lists_and_links(pages):
    page = pages["funcvae.estimators"]
    assert "MathJax-script" in page
    assert r"<p>$$f_k = \log w_k = \log p(x, z_k) - \log q(z_k \mid x)," in page
    assert re.search(r'<h6 id="raises">Raises:</h6>\s*<ul>\s*<li><strong>BadValue:</strong>', page)
    assert re.search(r'<h6 id="arguments">Arguments:</h6>\s*<ul>', page)
    assert re.search(r'href="\w+\.html#\w+"', page)
    assert not [name for name, page in pages.items() if "<p>Args:\n" in page or "<p>Raises:\n" in page]


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("def f(): pass", ["made_up.f has a docstring of 0 characters"]),
        ("def f():\n    'Computes f.'", ["made_up.f has a docstring of 11 characters"]),
        ("class f:\n    'Longer than the shortest docstring allowed.'", []),
        ("f = 1", ["made_up.f is not in the docstring", "made_up.f has a docstring of 0 characters"]),
        ("f = 1\n'Longer than the shortest docstring allowed.'", []),
        ("from funcvae.data.named_sets import NAMED as f", ["made_up.f is not in", "made_up.f has a docstring of 0"]),
        ("from made_up_inner import f", ["made_up.f is not in the docstring"]),
    ],
)
def test_the_law_finds_a_name_without_a_docstring(source, wrong, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    head = '"""A module with one public name, for this test."""\n'
    (tmp_path / "made_up_inner.py").write_text("f = 1\n'Longer than the shortest docstring allowed.'\n")
    (tmp_path / "made_up.py").write_text(f"{head}__all__ = ['f']\n{source}\n")
    found = list(problems(import_module("made_up")))
    for name in {"made_up", "made_up_inner"} & set(sys.modules):
        del sys.modules[name]
    assert len(found) == len(wrong)
    assert all(message.startswith(start) for message, start in zip(found, wrong, strict=True))
