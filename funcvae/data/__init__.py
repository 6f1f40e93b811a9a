"""Data sets as tensors: by name, from a folder of images, or from a NumPy file.

`load` is the one way in. Each source is a function that reads tensors as they are; what follows is the same
for all: floats, a test set held out, every check. Nothing is downloaded unless asked.
"""

from funcvae.data.dataset import Dataset, load
from funcvae.data.named_sets import GAUSSIAN2D_COV, GAUSSIAN2D_MEAN, NAMED, gaussian2d

__all__ = ["GAUSSIAN2D_COV", "GAUSSIAN2D_MEAN", "NAMED", "Dataset", "gaussian2d", "load"]
