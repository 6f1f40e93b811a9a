"""Data sets as tensors: by name, from a folder of images, or from a NumPy file.

`load` reads all of them: it converts values to floats, holds out a test set if it is missing, and checks the data. It
downloads only on request. `stream` leaves the data in their file. `NAMED` has the function that reads each named data
set. Its "gaussian2d" is drawn from a normal distribution with `GAUSSIAN2D_MEAN` and `GAUSSIAN2D_COV`.
"""

from funcvae.data.dataset import Dataset, FileRows, load, stream
from funcvae.data.named_sets import GAUSSIAN2D_COV, GAUSSIAN2D_MEAN, NAMED, gaussian2d

__all__ = ["GAUSSIAN2D_COV", "GAUSSIAN2D_MEAN", "NAMED", "Dataset", "FileRows", "gaussian2d", "load", "stream"]
