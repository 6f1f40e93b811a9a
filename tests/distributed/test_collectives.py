"""One process without others: it receives what it sends."""

import pytest
import torch

from funcvae.distributed import Processes, Traffic
from funcvae.distributed.collectives import SINGLE, short_reason
from funcvae.errors import BadType, BadValue, FuncvaeError, ProcessLost, ReportedElsewhere


def test_one_process_receives_what_it_sends():
    x = torch.arange(6.0).view(2, 3)
    assert SINGLE.is_main
    assert (SINGLE.rank, SINGLE.size) == (0, 1)
    assert torch.equal(SINGLE.all_reduce(x), x)
    assert torch.equal(SINGLE.all_gather(x), x.unsqueeze(0))
    assert torch.equal(SINGLE.all_to_all(x[:1]), x[:1])
    assert torch.equal(SINGLE.all_gather_rows(x), x)
    assert SINGLE.all_gather_object({"a": 1}) == [{"a": 1}]
    assert SINGLE.broadcast({"a": x})["a"] is x
    assert SINGLE.share_of(5) == range(5)
    SINGLE.barrier()
    SINGLE.require_equal(a=1)
    assert SINGLE.sent == Traffic(0, 0)


@pytest.mark.parametrize(
    ("rank", "size", "error"),
    [(1, 1, BadValue), (-1, 1, BadValue), (0, 0, BadValue), (0, 2, BadType), ("0", 1, BadType)],
)
def test_invalid_ranks_and_sizes_and_a_missing_store_are_refused(rank, size, error):
    with pytest.raises(error):
        Processes(rank, size)


def test_errors_of_lost_processes_derive_from_funcvae_error():
    assert issubclass(ProcessLost, FuncvaeError)
    assert issubclass(ReportedElsewhere, FuncvaeError)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("[enforce fail at /gloo/tcp/device.cc:84] ifa != nullptr. Unable to find x", "Unable to find x"),
        ("[/gloo/tcp/pair.cc:553] Connection closed by peer. This may help: x", "Connection closed by peer"),
        ("wait timeout after 100ms, keys: a", "wait timeout after 100ms, keys: a"),
        ("\n", "no reason given"),
    ],
)
def test_the_reason_in_an_error_of_torch_has_no_file_name_condition_or_advice(error, reason):
    assert short_reason(error) == reason
