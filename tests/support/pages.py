"""The README and the guides: their blocks of code, commands, links and tables."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "examples" / "guide").glob("*.md"))
PAGES = [README, *GUIDES]
REPORTS = sorted((ROOT / "examples").glob("*/README.md"))
"""Pages about results, whose commands take hours."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, such as "python", "bash" or "text"."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def run_python(page: Path) -> dict[str, object]:
    """Runs the Python of a page, block after block in one namespace, which it returns."""
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    return names


def commands(page: Path) -> list[list[str]]:
    """The arguments of `funcvae` in each line of the bash blocks of a page."""
    lines = "\n".join(blocks(page, "bash")).split("\n")
    return [shlex.split(line, comments=True)[1:] for line in lines if line]


def all_commands(page: Path) -> list[list[str]]:
    """The arguments of `funcvae` in each line of code of a page, also under torchrun; lines with "…" are left out."""
    lines = [*"\n".join(blocks(page, "bash")).split("\n"), *re.findall(r"^    (.*)$", page.read_text(), re.MULTILINE)]
    found = [re.fullmatch(r"(?:\w+=\S+ )*(?:torchrun .*-m )?funcvae( .*)?", line) for line in lines if "…" not in line]
    return [shlex.split(match[1] or "", comments=True) for match in found if match]


def links(page: Path) -> list[str]:
    """The relative links and figures of a page."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\((.*?)\)", text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub spells them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files_named(page: Path) -> list[str]:
    """The files of the repository that a page names in its text, such as `tests/test_noise.py`."""
    return re.findall(r"\b((?:tests|funcvae|examples)/[\w/.]+\.(?:py|md|png|json))\b", page.read_text())


def rows_of_estimators(page: Path) -> dict[str, list[str]]:
    """The cells of each row of the page's tables, by the names of estimators in the first cell: `name` or `name:α`."""
    rows = [line.strip("| ").split(" | ") for line in page.read_text().split("\n") if line.startswith("| `")]
    rows = [[cell.strip(" |") for cell in re.split(r"(?<!\\)\|", "|".join(row))] for row in rows]
    return {name: row[1:] for row in rows for name in re.findall(r"`(\w+)[:`]", row[0])}
