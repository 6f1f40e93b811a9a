"""Trackers: functions of a row (a flat dict of numbers) that `train.fit` calls as it goes.

They never change a result. `tensorboard` and `visdom` need the extras of their names, take rows with pictures too
(arrays [n, C, H, W] in [0, 1], named "x" and "x_hat"), and may fail in mid-run: a line says so, and the run goes on.
"""

from funcvae.tracking.metrics_file import MetricsReader, MetricsWriter, Tracker, is_step
from funcvae.tracking.progress import progress_bar
from funcvae.tracking.tensorboard_log import tensorboard
from funcvae.tracking.visdom_server import visdom

__all__ = ["MetricsReader", "MetricsWriter", "Tracker", "is_step", "progress_bar", "tensorboard", "visdom"]
