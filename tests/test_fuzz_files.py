"""A few of the cases of tests/fuzz/files.py, and that it can fail."""

import subprocess
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import files as fuzz


def test_damaged_files_end_in_a_line():
    """In a process of its own, whose memory is measured."""
    command = [sys.executable, fuzz.__file__, "--cases", "600", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 cases, 0 failures" in done.stdout
    assert len(done.stdout.splitlines()) == len(fuzz.KINDS) + 1


def test_a_reader_that_lets_another_error_out_is_reported(capsys):
    def careless(folder):
        return (folder / "x.npy").read_bytes()[10_000]

    kinds = {"careless": fuzz.KINDS["npy"]._replace(read=careless)}
    assert fuzz.main(["--cases", "3"], kinds) == 1
    assert "--seed 0 --case 1 (careless): IndexError" in capsys.readouterr().err


def test_a_reader_that_writes_elsewhere_or_warns_is_reported(capsys):
    kinds = {
        "writes": fuzz.KINDS["npy"]._replace(read=lambda folder: (folder.parent / "x").touch()),
        "warns": fuzz.KINDS["npy"]._replace(read=lambda folder: warnings.warn("careful", stacklevel=1)),
    }
    assert fuzz.main(["--cases", "8"], kinds) == 1
    error = capsys.readouterr().err
    assert "wrote outside its folder" in error
    assert "warned: careful" in error


def test_a_case_is_always_the_same(tmp_path):
    assert [fuzz.case(5, 3, tmp_path, {"npz": fuzz.KINDS["npz"]}) for _ in range(2)] == 2 * [
        fuzz.case(5, 3, tmp_path, {"npz": fuzz.KINDS["npz"]})
    ]
