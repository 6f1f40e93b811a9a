"""One process by itself: what it receives is what it sends."""

import pytest
import torch

from funcvae.errors import BadType, BadValue, Elsewhere, FuncvaeError, Lost
from funcvae.processes import ALONE, Processes, Traffic

# By itself.


def test_one_process_has_what_it_sends():
    x = torch.arange(6.0).view(2, 3)
    assert ALONE.first
    assert (ALONE.rank, ALONE.size) == (0, 1)
    assert torch.equal(ALONE.total_(x), x)
    assert torch.equal(ALONE.gathered(x), x.unsqueeze(0))
    assert torch.equal(ALONE.swapped(x[:1]), x[:1])
    assert torch.equal(ALONE.rows(x), x)
    assert ALONE.told({"a": 1}) == [{"a": 1}]
    assert ALONE.of_the_first({"a": x})["a"] is x
    assert ALONE.share_of(5) == range(5)
    ALONE.agree(a=1)
    assert ALONE.sent == Traffic(0, 0)


@pytest.mark.parametrize(
    ("rank", "size", "error"),
    [(1, 1, BadValue), (-1, 1, BadValue), (0, 0, BadValue), (0, 2, BadType), ("0", 1, BadType)],
)
def test_processes_are_made_by_joined(rank, size, error):
    with pytest.raises(error):
        Processes(rank, size)


def test_errors_say_which_kind_they_are():
    assert issubclass(Lost, FuncvaeError)
    assert issubclass(Elsewhere, FuncvaeError)
