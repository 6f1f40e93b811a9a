"""Compiled tests without the C++ compiler."""

import pytest
import torch


def use_aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `compilation.compiled` use aot_eager: inductor's graphs and guards, in a fifth of the time.

    Its kernels are those of eager PyTorch, so only inductor itself is not tested.
    """
    compile = torch.compile

    def with_aot_eager(f, *, options, **given):
        guards = {"guard_filter_fn": options["guard_filter_fn"]}
        return compile(f, backend="aot_eager", options=guards, **given)

    monkeypatch.setattr(torch, "compile", with_aot_eager)
