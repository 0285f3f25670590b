"""The optimisation: geometry, appearance, exposure and cameras from posed, masked views.

Munkberg et al. 2022, §3, with a visual-hull start, a narrow band that follows the surface, and nuisance
parameters for what phones do: exposure that wanders and poses that are a little off.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from reconstruction.cameras import se3_exp
from reconstruction.data import Views
from reconstruction.field import MaterialField
from reconstruction.rasterizer import Rasterizer
from reconstruction.surface import Surface, laplacian_loss, sign_loss
from reconstruction.tetgrid import Float32Array, Lattice
from reconstruction.view_renderer import render_view
from reconstruction.visual_hull import hull_signed_distance, silhouette_distance
from scan2twin.config import ReconstructConfig
from scan2twin.errors import ReconstructionError

HULL_DISAGREE = 0.1  # share of the views that may be wrong about a point of the visual hull
HULL_PROBE_CELLS = 32  # grid on which the hull's extent is found
BOX_MARGIN = 0.1  # how far the object may reach beyond its box, as a share of the box's longest side
COARSE_GRID = 0.6  # cells of the first level, as a share of the finest
COARSE_SHARE = 0.2  # of the iterations, on the first level
HALF_SIZE_SHARE = 0.25  # of the iterations, against images of half the size
FOLLOW_EVERY = 50  # iterations between centring the band on the surface

LEARNING_RATE_SDF = 0.015  # cells
LEARNING_RATE_OFFSET = 0.01
LEARNING_RATE_FIELD = 0.01  # Munkberg et al. 2022, supplement
LEARNING_RATE_GAIN = 0.003
LEARNING_RATE_CAMERA = 0.0003  # radians and unit-frame lengths
DECAY = 0.1  # of the learning rates over the run (Munkberg et al. 2022, supplement)

WEIGHT_MASK = 1.0
WEIGHT_LAPLACIAN = 0.3
WEIGHT_SIGN = 0.02
WEIGHT_GAIN = 0.01
WEIGHT_CAMERA = 10.0


@dataclass(frozen=True)
class Step:
    """Figures of one iteration."""

    iteration: int
    view: int  # number in the training views
    loss: float
    psnr: float  # dB, of the rendered view against the photo over black
    triangles: int


class Optimiser:
    """Everything that is optimised, and the loop over it."""

    def __init__(
        self, views: Views, object_size: NDArray[np.float64], config: ReconstructConfig, rasterizer: Rasterizer
    ) -> None:
        """Prepare to fit `views`; object_size (3,) is the extent of the object's box, unit frame."""
        self.config, self.rasterizer = config, rasterizer
        self.views = views
        self.half = views.resized(max(views.resolution // 2, 32))
        self.field = MaterialField(seed=config.seed)
        self.log_gain = nn.Parameter(torch.zeros(len(views), 3))
        self.twist = nn.Parameter(torch.zeros(len(views), 6))
        self.iteration = 0
        hull = VisualHull(self.half, object_size)
        self.low, self.high = hull.extent()
        self.surface = self._start(hull, config.grid * COARSE_GRID)
        self._fine = False
        self._make_optimizer()

    def _spacing(self, cells: float) -> float:
        return float((self.high - self.low).max() / cells)

    def _start(self, hull: "VisualHull", cells: float) -> Surface:
        lattice = Lattice(*self._box(self._spacing(cells)), self._spacing(cells))
        return Surface(lattice, hull.signed_distance(lattice.positions))

    def _box(self, spacing: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # Two cells of air, so that the border, which is held outside, is clear of the surface.
        return self.low - 2 * spacing, self.high + 2 * spacing

    def _make_optimizer(self) -> None:
        self.optimizer = torch.optim.Adam(
            [
                {"params": [self.surface.sdf], "lr": LEARNING_RATE_SDF},
                {"params": [self.surface.offset], "lr": LEARNING_RATE_OFFSET},
                {"params": list(self.field.parameters()), "lr": LEARNING_RATE_FIELD, "eps": 1e-12},
                {"params": [self.log_gain], "lr": LEARNING_RATE_GAIN},
                {"params": [self.twist], "lr": LEARNING_RATE_CAMERA},
            ],
            betas=(0.9, 0.99),
            fused=True,
        )
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def gains(self) -> torch.Tensor:
        """Return each training view's gain on linear RGB (B, 3); their geometric mean is 1."""
        return torch.exp(self.log_gain - self.log_gain.mean(dim=0))

    def clip_from_unit(self, view: int) -> torch.Tensor:
        """Return the refined camera (4, 4) of training view `view`."""
        correction = se3_exp(self.twist[view : view + 1])[0]
        return self.views.clip_from_camera[view] @ correction @ self.views.camera_from_unit[view]

    def run(self) -> Iterator[Step]:
        """Optimise to the end, giving figures after each iteration.

        Raises:
            ReconstructionError: the loss is not finite, or no surface is left.

        """
        while self.iteration < self.config.iterations:
            yield self.step()

    def step(self) -> Step:
        """Do one iteration: one view, one Adam step."""
        i, n = self.iteration, self.config.iterations
        if not self._fine and i >= COARSE_SHARE * n:
            self._refine()
        elif i and i % FOLLOW_EVERY == 0:
            self.surface.follow(self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * DECAY ** (i / n)

        views = self.half if i < HALF_SIZE_SHARE * n else self.views
        number = self._view_of(i)
        target = views.images[number].float() / 255
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + i)
        background = torch.rand(3, generator=generator)

        mesh = self.surface.mesh()
        if len(mesh.faces) == 0:
            raise ReconstructionError("reconstruct: the surface vanished; check that the masks show the object")
        topology = self.rasterizer.build_topology(mesh.faces)
        image = render_view(
            self.rasterizer, mesh.vertices, mesh.faces, topology, self.field, self.clip_from_unit(number),
            views.resolution, self.gains()[number],
        )  # fmt: skip
        difference = image - target
        # The same background behind both, so that colours on the outline count by their coverage.
        color = difference[..., :3] - background * difference[..., 3:]
        weight = self.views.weight[number]
        loss = (
            weight * (color.abs().mean() + WEIGHT_MASK * difference[..., 3].square().mean())
            + WEIGHT_LAPLACIAN * laplacian_loss(mesh, self.surface.lattice.spacing) * 0.01
            + WEIGHT_SIGN * sign_loss(self.surface.sdf, mesh.edges) * 0.01
            + WEIGHT_GAIN * self.log_gain[number].square().mean()
            + WEIGHT_CAMERA * self.twist[number].square().sum()
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.surface.hold_rim()
        self.optimizer.step()
        self.iteration += 1

        value = float(loss.detach())
        if not math.isfinite(value):
            raise ReconstructionError(
                f"reconstruct: the loss is {value} at iteration {i}, frame {views.index[number]}; "
                "look at that frame's image, mask and pose"
            )
        mse = float(difference.detach()[..., :3].square().mean())
        return Step(i, number, value, -10 * math.log10(max(mse, 1e-10)), len(mesh.faces))

    def _view_of(self, iteration: int) -> int:
        epoch, place = divmod(iteration, len(self.views))
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.views))
        return int(order[place])

    def _refine(self) -> None:
        """Go on on the finest grid."""
        spacing = self._spacing(self.config.grid)
        state = {p: self.optimizer.state[p] for g in self.optimizer.param_groups[2:] for p in g["params"]}
        self.surface = self.surface.refined(spacing, *self._box(spacing))
        self._make_optimizer()
        self.optimizer.state.update(state)
        self._fine = True


class VisualHull:
    """The visual hull of the training views."""

    def __init__(self, views: Views, object_size: NDArray[np.float64]) -> None:
        self._distances = np.stack(
            [silhouette_distance(np.ascontiguousarray(image[::-1, :, 3])) for image in views.images.numpy()]
        )
        self._pixel_from_unit, self._focal = views.pixel_from_unit(), views.focal()
        self._reach = object_size / 2 + BOX_MARGIN * object_size.max()

    def signed_distance(self, points: Float32Array) -> Float32Array:
        """Return the signed distance (N,) at points (N, 3), unit-frame lengths, negative inside."""
        return hull_signed_distance(points, self._distances, self._pixel_from_unit, self._focal, HULL_DISAGREE)

    def extent(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the low and high corner (3,) of the hull within the object's box and its margin.

        Raises:
            ReconstructionError: the views agree on no point of space.

        """
        lattice = Lattice(-self._reach, self._reach, float(2 * self._reach.max() / HULL_PROBE_CELLS))
        inside = lattice.positions[self.signed_distance(lattice.positions) < 0].astype(np.float64)
        if len(inside) == 0:
            raise ReconstructionError(
                "reconstruct: the masks agree on no point of space; check that masks show the object and that poses "
                "and the object's box are right"
            )
        pad = lattice.spacing
        return np.maximum(inside.min(axis=0) - pad, -self._reach), np.minimum(inside.max(axis=0) + pad, self._reach)
