"""Every example runs, small, and says what it promises."""

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_quickstart_orders_the_estimators_as_the_papers_do():
    variance = runpy.run_path(str(EXAMPLES / "quickstart.py"))["main"](steps=100)
    assert variance["stl"] < variance["elbo_mc"]
    assert variance["my_dreg"] < variance["iwae"]


def test_the_readmes_python_runs_as_written():
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_no_example_is_left_out():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"quickstart"}
