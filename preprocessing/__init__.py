"""From raw frames to the dataset: validate, condition, compensate and refine poses, mask."""

import os

# Before numba is first imported; see reconstruction/__init__.py: OpenMP's barriers spin where the machine is shared.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
