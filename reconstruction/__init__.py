"""From the dataset to the model: differentiable rendering, textures, export."""

import os

# Before numba is first imported. OpenMP's barriers spin: with another process on the machine, kernels of a
# millisecond become ten times slower. The work queue's threads sleep.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
