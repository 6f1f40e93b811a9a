"""Trackers: functions that `train.fit` calls with each row of metrics, a flat dict of numbers.

Trackers never change a result. `tensorboard` and `visdom` require the extras of the same names, and also take rows with
images: arrays [n, C, H, W] in [0, 1], named "x" and "x_hat". If one fails during a run, it prints a line to stderr and
the run continues.
"""

from funcvae._support.progress import Progress
from funcvae.tracking.metrics_file import MetricsReader, MetricsWriter, Tracker, is_step
from funcvae.tracking.progress import bar, progress_bar
from funcvae.tracking.tensorboard_log import tensorboard
from funcvae.tracking.training_progress import TrainingProgress, duration
from funcvae.tracking.visdom_server import visdom

__all__ = [
    "MetricsReader", "MetricsWriter", "Progress", "Tracker", "TrainingProgress", "bar", "duration", "is_step",
    "progress_bar", "tensorboard", "visdom",
]  # fmt: skip
