"""The optimisation: geometry, appearance, exposure and cameras from posed, masked views.

Munkberg et al. 2022, §3, with a visual-hull start, a narrow band that follows the surface, and nuisance
parameters for what phones do: exposure that wanders and poses that are a little off.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from reconstruction.appearance import SceneLight
from reconstruction.cameras import se3_exp
from reconstruction.data import Views
from reconstruction.field import MaterialField
from reconstruction.initial_shape import VisualHull, box_with_air, initial_surface
from reconstruction.light import EnvironmentLight
from reconstruction.measure import comparison_picture, standouts
from reconstruction.photo_match import Match, match
from reconstruction.rasterizer import Rasterizer
from reconstruction.sparse_points import point_loss
from reconstruction.surface import Mesh, Surface, sign_loss
from reconstruction.view_renderer import SRGB_OFFSET, SRGB_POWER, render_view
from scan2twin.config import ReconstructConfig
from scan2twin.errors import ReconstructionError

COARSE_GRID = 0.6  # cells of the first level, as a share of the finest
COARSE_SHARE = 0.2  # of the iterations, on the first level
HALF_SIZE_SHARE = 0.25  # of the iterations, against images of half the size
FOLLOW_EVERY = 50  # iterations between centring the band on the surface
REWEIGHT_AT = (0.4, 0.6, 0.8)  # of the iterations: when views that stand out lose weight

# Adam. A camera's rate is small because each view comes up once an epoch: its second moment is averaged over the
# visits to other views too, so that a single visit moves it by about seven times the rate.
# Signed distances, cells. A large rate destroys the hull, a small one never leaves the sphere.
LEARNING_RATE_SDF = {"visual_hull": 0.02, "sphere": 0.06}
LEARNING_RATE_OFFSET = 0.01
LEARNING_RATE_FIELD = 0.01  # Munkberg et al. 2022, supplement
LEARNING_RATE_LIGHT = 0.05  # share of the headlight; logarithm of the environment's radiance
LEARNING_RATE_CAMERA = 0.0001  # radians and unit-frame lengths
BETAS = (0.9, 0.999)
EPSILON = 1e-12  # of Adam: the loss is a mean over pixels, so gradients come near the usual 1e-8
DECAY = 0.1  # of the learning rates over the run (Munkberg et al. 2022, supplement)

GAIN_STEP = 0.3  # share of the difference in exposure that one visit of a view takes up

WEIGHT_BENDING = 0.05
WEIGHT_SIGN = 0.00005
WEIGHT_CAMERA = 10.0
WEIGHT_POINTS = 0.005  # a unit-frame length
WEIGHT_VARIATION = 0.003
WEIGHT_NEUTRALITY = 0.005  # Munkberg et al. 2022, supplement
WEIGHT_UNEVENNESS = 0.0001
VARIATION_POINTS = 512


@dataclass(frozen=True)
class Step:
    """Figures of one iteration."""

    iteration: int
    view: int  # number in the training views
    loss: float
    psnr: float  # dB, of the rendered view against the photo, both on black
    triangles: int


class Optimiser:
    """Everything that is optimised, and the loop over it.

    Attributes: `surface`, `field`, `light` (None where the surface shows its albedo); `log_gain` (B, 3) and `twist`
    (B, 6), see `gains` and `clip_from_unit`; `trust` (B,), the factor that each view's weight was lowered by because it
    does not fit the others.
    """

    def __init__(
        self, views: Views, object_size: NDArray[np.float64], config: ReconstructConfig, rasterizer: Rasterizer
    ) -> None:
        """Prepare to fit `views`, on their device; object_size (3,) is the extent of the object's box, unit frame.

        Raises:
            ReconstructionError: the masks agree on no shape.

        """
        self.config, self.rasterizer = config, rasterizer
        self.views = views
        self._half = views.resized(max(views.resolution // 2, 32))
        self._device = device = views.images.device
        self.field = MaterialField(seed=config.seed).to(device)
        distance = float(np.linalg.norm(views.centers(), axis=1).mean())
        environment = EnvironmentLight() if config.appearance == "environment" else None
        lit = config.appearance != "radiance"
        self.light = SceneLight(distance, environment=environment).to(device) if lit else None
        self.log_gain = torch.zeros(len(views), 3, device=device) if views.gain is None else views.gain.log()
        self.twist = nn.Parameter(torch.zeros(len(views), 6, device=device))
        self.trust = torch.ones(len(views), device=device)
        self._residual = torch.zeros(len(views), device=device)  # of each view's last visit
        self.iteration = 0
        hull = VisualHull(self._half, object_size, rasterizer)
        self._low, self._high = hull.low, hull.high
        self._points = hull.points
        self.surface = initial_surface(hull, self._spacing(COARSE_GRID * config.grid), config.start, device)
        self._fine = False
        self._make_optimizer()

    def _spacing(self, cells: float) -> float:
        return float((self._high - self._low).max() / cells)

    def _make_optimizer(self) -> None:
        groups = [
            {"params": [self.surface.sdf], "lr": LEARNING_RATE_SDF[self.config.start]},
            {"params": [self.surface.offset], "lr": LEARNING_RATE_OFFSET},
            {"params": list(self.field.parameters()), "lr": LEARNING_RATE_FIELD},
        ]
        if self.light is not None:
            groups.append({"params": list(self.light.parameters()), "lr": LEARNING_RATE_LIGHT})
        if self.config.refine_cameras:
            groups.append({"params": [self.twist], "lr": LEARNING_RATE_CAMERA})
        self._rates = [group["lr"] for group in groups]
        self._optimizer = torch.optim.Adam(groups, betas=BETAS, eps=EPSILON, fused=True)

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
        i, total = self.iteration, self.config.iterations
        if not self._fine and i >= COARSE_SHARE * total:
            self._refine()
        elif i > 0 and i % FOLLOW_EVERY == 0:
            self.surface.follow(self._optimizer)
        if i in [round(share * total) for share in REWEIGHT_AT]:
            self._reweight()
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * DECAY ** (i / total)

        views = self._half if i < HALF_SIZE_SHARE * total else self.views
        number = self._view_of(i)
        mesh = self.surface.mesh()
        if len(mesh.faces) == 0:
            raise ReconstructionError("reconstruct: the surface vanished; check that the masks show the object")
        image = self._render(mesh, number, views.resolution)
        # The same background behind both, so that colours on the outline count by their coverage.
        random = torch.Generator().manual_seed(self.config.seed * 1_000_003 + i)
        background = torch.rand(3, generator=random, device="cpu").to(self._device)
        matched = match(image, views.images[number], views.pixel_weight[number], background, views.window(number))
        loss = (
            self.views.weight[number] * self.trust[number] * matched.fit
            + WEIGHT_BENDING * self.surface.bending_loss()
            + WEIGHT_SIGN * sign_loss(self.surface.sdf, mesh.edges)
            + WEIGHT_CAMERA * self.twist[number].square().sum()
        )
        if self._points is not None:
            loss = loss + WEIGHT_POINTS * point_loss(
                self._points, number, mesh.vertices, mesh.faces,
                self.clip_from_unit(number), self.rasterizer, self._half.resolution,
            )  # fmt: skip
        if self.light is not None and self.light.environment is not None:
            loss = loss + self._appearance_prior(mesh.vertices.detach(), self.light.environment)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ReconstructionError(
                f"reconstruct: the loss is {value} at iteration {i}, frame {views.index[number]}; "
                "look at that frame's image, mask and pose"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.surface.hold_rim()
        self._optimizer.step()
        if self.light is not None:
            self.light.constrain()
        self.iteration += 1

        if self._fine:  # before, the rendering says little about the photo's exposure
            self._update_gain(number, matched)
        # By the mask's share of the view, so that small and large outlines compare.
        self._residual[number] = float(matched.fit.detach()) / max(matched.seen, 1e-6)
        return Step(i, number, value, -10 * math.log10(max(matched.squared_error, 1e-10)), len(mesh.faces))

    def _render(self, mesh: Mesh, number: int, resolution: int) -> torch.Tensor:
        return render_view(
            self.rasterizer, mesh.vertices, mesh.faces, self.rasterizer.build_topology(mesh.faces), self.field,
            self.clip_from_unit(number), resolution, self.gains()[number],
            None if self.light is None else self.light.ready(),
        )  # fmt: skip

    @torch.no_grad()
    def picture(self, number: int) -> NDArray[np.uint8]:
        """Return training view `number` as it stands: photo | rendering | error ×4 (R, 3R, 3) RGB, top row first."""
        photo = self.views.images[number].float() / 255
        return comparison_picture(self._render(self.surface.mesh(), number, self.views.resolution), photo)

    def _appearance_prior(self, surface: torch.Tensor, environment: EnvironmentLight) -> torch.Tensor:
        """Return what speaks against a material that varies and light that is coloured or uneven; surface (V, 3)."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.iteration)
        chosen = torch.randint(len(surface), (VARIATION_POINTS,), generator=generator, device="cpu").to(self._device)
        return (
            WEIGHT_VARIATION * self.field.variation(surface[chosen], generator)
            + WEIGHT_NEUTRALITY * environment.neutrality_loss()
            + WEIGHT_UNEVENNESS * environment.unevenness_loss()
        )

    def _update_gain(self, number: int, matched: Match) -> None:
        """Move a view's gain towards the ratio of photo to rendering over the object, in closed form (see `expose`)."""
        if matched.drawn is not None and matched.photographed is not None:
            ratio = (matched.photographed + SRGB_OFFSET) / (matched.drawn + SRGB_OFFSET)
            self.log_gain[number] += GAIN_STEP * SRGB_POWER * torch.log(ratio.clamp(min=0.1))

    def _view_of(self, iteration: int) -> int:
        epoch, place = divmod(iteration, len(self.views))
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.views))
        return int(order[place])

    def _refine(self) -> None:
        """Go on on the finest grid."""
        spacing = self._spacing(self.config.grid)
        kept = {p: self._optimizer.state[p] for group in self._optimizer.param_groups[2:] for p in group["params"]}
        self.surface = self.surface.refined(spacing, *box_with_air(self._low, self._high, spacing))
        self._make_optimizer()
        self._optimizer.state.update(kept)
        self._fine = True

    def _reweight(self) -> None:
        """Trust views whose residual stands out less, by the square of how far they do (Cauchy-like)."""
        residual = self._residual.double().cpu().numpy()
        self.trust = torch.ones_like(self._residual)
        for k in standouts(residual):
            self.trust[k] = float((np.median(residual) / residual[k]) ** 2)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs to go on from here with the same result to the bit."""
        live = {
            "iteration": self.iteration,
            "fine": self._fine,
            "surface": self.surface.state(),
            "field": self.field.state_dict(),
            "light": None if self.light is None else self.light.state_dict(),
            "views": [self.log_gain, self.twist.data, self.trust, self._residual],
            "optimizer": self._optimizer.state_dict(),
        }
        return copy.deepcopy(live)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state` of an optimiser of the same views and configuration."""
        state = copy.deepcopy(state)
        self.iteration, self._fine = state["iteration"], state["fine"]
        self.surface = Surface.from_state(state["surface"], self._device)
        self.field.load_state_dict(state["field"])
        if self.light is not None:
            self.light.load_state_dict(state["light"])
        views = [values.to(self._device) for values in state["views"]]
        self.log_gain, self.twist.data, self.trust, self._residual = views
        self._make_optimizer()
        self._optimizer.load_state_dict(state["optimizer"])
