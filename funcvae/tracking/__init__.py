"""Trackers show a run while it trains: its rows of metrics, and images of the model. They never change a result.

`tensorboard`, `visdom` and `wandb` require the extras of the same names. They are context managers of a `Tracker`,
whose `log` can also be passed to `funcvae.train.fit`. If one fails during a run, it prints a line to stderr and the run
continues. `Images` are arrays [n, C, H, W] in [0, 1] by name. `bar` is a `Progress`: long computations call it with
(done, total), and it shows a progress bar.
"""

from funcvae._support.progress import Progress
from funcvae.tracking.metrics_file import MetricsReader, MetricsWriter
from funcvae.tracking.progress import bar
from funcvae.tracking.protocol import Images, Tracker
from funcvae.tracking.tensorboard_log import tensorboard
from funcvae.tracking.training_progress import TrainingProgress, duration, speed
from funcvae.tracking.visdom_server import visdom
from funcvae.tracking.wandb_run import wandb

__all__ = [
    "Images", "MetricsReader", "MetricsWriter", "Progress", "Tracker", "TrainingProgress", "bar", "duration", "speed",
    "tensorboard", "visdom", "wandb",
]  # fmt: skip
