"""Checks of figures and of their axes."""

import copy
import io

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text


def assert_draws_well(make, arrays):
    """The figure draws without a warning and clips no text; arrays and settings do not change."""
    before, settings = copy.deepcopy(arrays), dict(matplotlib.rcParams)
    figure = make()
    figure.savefig(io.BytesIO())
    assert figure.get_suptitle()
    tight, inches = figure.get_tightbbox(), figure.get_size_inches()
    assert (tight.min >= -0.01).all()
    assert (tight.max <= inches + 0.01).all()
    small = FontProperties(size="small").get_size_in_points()
    assert all(text.get_size() >= small for text in figure.findobj(Text))
    np.testing.assert_equal(arrays, before)
    assert dict(matplotlib.rcParams) == settings


def arrows(ax):
    """The arrow heads at the edges of the axes, as (marker, x, y)."""
    return {
        (line.get_marker(), float(x), float(y))
        for line in ax.lines
        if not line.get_clip_on() and line.get_marker() in "<>v^" and line.get_transform() == ax.transData
        for x, y in zip(*line.get_data(), strict=True)
    }


def intervals(ax):
    return [segment for lines in ax.collections for segment in lines.get_segments()]
