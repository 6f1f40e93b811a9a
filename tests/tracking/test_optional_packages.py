"""The packages of trackers are optional and have no side effects."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from funcvae import tracking
from funcvae.errors import Missing
from funcvae.tracking import optional_packages
from tests.support.tracking import CONFIG, global_state, rows


@pytest.mark.parametrize("extra", ["tensorboard", "visdom", "wandb"])
def test_a_missing_package_raises_before_anything_is_written(extra, tmp_path, monkeypatch):
    for name in {extra, *(loaded for loaded in sys.modules if loaded.startswith(f"{extra}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    folder = tmp_path / "run"
    trackers = {
        "tensorboard": lambda: tracking.tensorboard(folder, CONFIG),
        "visdom": lambda: tracking.visdom("http://localhost:8097", "run", CONFIG),
        "wandb": lambda: tracking.wandb(folder, CONFIG),
    }
    with pytest.raises(Missing) as raised, trackers[extra]():
        pass
    assert optional_packages._INSTALL[extra] in str(raised.value)
    assert "pip install" in optional_packages._INSTALL[extra]
    assert "\n" not in str(raised.value)
    assert not folder.exists()


def test_trackers_leave_every_global_generator_setting_and_thread_alone(tmp_path, server):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    before = global_state()
    with tracking.tensorboard(tmp_path, CONFIG) as write, tracking.visdom(server.address, "run", CONFIG) as draw:
        for row in rows():
            write.log(row)
            draw.log(row)
            assert threading.enumerate() == before[2]
    assert global_state() == before


@pytest.mark.parametrize("extra", ["tensorboard", "visdom"])
def test_importing_an_extra_leaves_every_global_generator_alone(extra):
    pytest.importorskip(extra, reason=f"{extra} is not installed")
    module = {"tensorboard": "torch.utils.tensorboard", "visdom": "visdom"}[extra]
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    program += "from tests.support.tracking import global_state\n"
    program += f"before = global_state(); import {module}; assert global_state() == before"
    subprocess.run([sys.executable, "-c", program], check=True)
