"""The README and the guides: code runs as written, links exist, tables are complete, and pages are short."""

import json
import re
import sys
import tempfile

import cyclopts
import numpy as np
import pytest

import funcvae as fv
from funcvae import cli
from funcvae.estimators import EXAMPLES, TABLE, parse
from tests.support import pages
from tests.support.datasets import write_idx
from tests.support.figures import without_figures

every_page = pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Disables torch.compile, which would take longer than the few steps."""
    monkeypatch.setattr(fv.compilation, "compiled", lambda f, device="cpu": f)
    monkeypatch.setattr(fv.compilation, "available", lambda: False)


@pytest.fixture(autouse=True)
def forgotten(tmp_path, monkeypatch):
    """Forgets the modules that pages have written and imported, for tests with modules of the same names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", pages.GUIDES, ids=lambda page: page.stem)
def test_the_python_of_a_guide_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a page may write files in another folder
    with without_figures():
        pages.run_python(page)


def numbers(line):
    return [float(number.strip("[],")) for number in line.split() if re.fullmatch(r"\[?[\d.]+[\],]*", number)]


def test_the_readmes_python_runs_and_prints_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pages.run_python(pages.README)
    printed = capsys.readouterr().out.split("\n")
    shown = pages.blocks(pages.README, "text")[0].strip().split("\n")
    title, header, *rows = shown
    start = printed.index(title)
    assert printed[start + 1].split() == header.split()
    for row, found in zip(rows, printed[start + 2 :], strict=False):
        assert row.split()[0] == found.split()[0]
        np.testing.assert_allclose(numbers(found)[:-1], numbers(row)[:-1], rtol=0.05)  # all but the time
    assert len(rows) == 3


QUICK = {"evaluate": ["--samples", "20"], "variance": ["--replicates", "40"]}


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "data" / "MNIST" / "raw", train=40, test=40)
    commands = pages.commands(pages.README)
    assert len(commands) == 12
    with without_figures():
        for command in commands:
            if "--epochs" in command:
                at = command.index("--epochs") + 1
                command[at] = str(int(command[at]) // 5)
            cli.main([*command, *QUICK.get(command[0], [])])
    assert json.loads((tmp_path / "runs" / "burda" / "config.json").read_text())["epochs"] == 2


def test_every_command_of_the_pages_is_accepted_by_the_command_line(monkeypatch):
    parse_args = cyclopts.App.parse_args

    def only_parsed(*args, **options):
        _, bound, rest = parse_args(*args, **options)
        return (lambda *args, **options: None), bound, rest

    monkeypatch.setattr(cyclopts.App, "parse_args", only_parsed)
    commands = [command for page in pages.PAGES for command in pages.all_commands(page)]
    assert len(commands) > 50
    for command in commands:
        cli.main(command)
    with pytest.raises(SystemExit):
        cli.main(["train", "mnist_vae", "--epoch", "5"])


@every_page
def test_links_figures_and_named_files_exist(page):
    for link in pages.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target), link
    named = pages.files_named(page)
    assert [name for name in named if not (pages.ROOT / name).is_file()] == []


def test_every_figure_is_shown_on_a_page():
    every = [*pages.PAGES, *pages.REPORTS]
    shown = {(page.parent / link).resolve() for page in every for link in pages.links(page)}
    figures = [*(pages.ROOT / "examples" / "figures").iterdir(), *(pages.ROOT / "examples").glob("[ab]*/*.png")]
    assert figures
    assert [path.name for path in figures if path.resolve() not in shown] == []


def test_the_readme_links_every_guide():
    linked = {(pages.ROOT / link.partition("#")[0]).resolve() for link in pages.links(pages.README)}
    assert [path.name for path in pages.GUIDES if path.resolve() not in linked] == []


@pytest.mark.parametrize("page", [*pages.PAGES, *pages.REPORTS], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_no_placeholder_is_left(page):
    assert re.findall(r"@[A-Z]\w+", page.read_text()) == []


def test_pages_are_short():
    assert len(pages.README.read_text().split("\n")) - 1 <= 160
    assert len(pages.README.read_bytes()) <= 12 * 1024
    lengths = {path.name: len(path.read_text().split("\n")) - 1 for path in pages.GUIDES}
    assert {name: length for name, length in lengths.items() if length > 150} == {}


def test_the_guide_has_the_algebra_of_every_estimator():
    rows = pages.rows_of_estimators(pages.ROOT / "examples" / "guide" / "estimators.md")
    assert set(TABLE) <= set(rows)


def test_the_readmes_table_has_the_claims_of_every_estimator():
    rows = pages.rows_of_estimators(pages.README)
    assert set(TABLE) <= set(rows)
    kinds = {"path": "reparameterised", "any": "any", "Bernoulli": "discrete", "discrete": "discrete"}
    for name, spec in EXAMPLES.items():
        claims = parse(spec).claims
        target, bias, posterior, paper = rows[name]
        assert claims.posterior in {kinds[kind] for kind in posterior.split("; ")}, name
        assert bias or (claims.unbiased_encoder and claims.unbiased_decoder), name
        assert not bias or not claims.unbiased_encoder or spec == "ovis:0", name
        if spec == name:
            assert claims.target in target.split("; "), name
        assert paper


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](b.md) and ![c](d.png), `[e](f)`, [g](https://h)\n\n## A heading, with `code`\n")
    assert pages.links(page) == ["b.md", "d.png"]
    assert pages.anchors(page) == {"a-heading-with-code"}
