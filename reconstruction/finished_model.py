"""The finished mesh and field, and how well they match views."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from reconstruction.appearance import ReadyLight, SceneLight
from reconstruction.cameras import se3_exp
from reconstruction.data import Views
from reconstruction.field import MaterialField
from reconstruction.rasterizer import Rasterizer
from reconstruction.view_renderer import SRGB_OFFSET, SRGB_POWER, render_view

FIT_STEPS = 24
FIT_RATE = 0.0015  # radians and unit-frame lengths, first step; falls linearly to zero
FIT_PRIOR = 1.0  # weight of the squared correction, as in the optimisation but looser: the model is fixed


@dataclass(frozen=True)
class FinishedModel:
    """A mesh (vertices (V, 3) float32, unit frame; faces (F, 3) int32) with its material field."""

    vertices: torch.Tensor
    faces: torch.Tensor
    field: MaterialField
    rasterizer: Rasterizer
    light: SceneLight | None = None

    @cached_property
    def _topology(self) -> Any:
        return self.rasterizer.build_topology(self.faces)  # the faces never change, and fitting renders often

    @cached_property
    def _ready_light(self) -> ReadyLight | None:
        return None if self.light is None else self.light.ready()

    def render(self, clip_from_unit: torch.Tensor, resolution: int, gain: torch.Tensor | None = None) -> torch.Tensor:
        """Render (R, R, 4) premultiplied sRGB and coverage, bottom row first; differentiable in camera and gain."""
        return render_view(
            self.rasterizer, self.vertices, self.faces, self._topology, self.field,
            clip_from_unit, resolution, gain, self._ready_light,
        )  # fmt: skip

    def fit_camera(self, views: Views, number: int, steps: int = FIT_STEPS) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit a view's pose and exposure to its photo, the model held fixed: clip_from_unit (4, 4) and gain (3,).

        With no `steps` only the exposure is fitted, in closed form.

        A held-out view's pose is as uncertain as the training views', which were refined; comparing at an unrefined
        pose would measure the pose (Lin et al. 2021, BARF, §4.2 do the same).
        """
        target, window = views.images[number].float() / 255, views.window(number)
        twist = torch.zeros(1, 6, device=self.vertices.device, requires_grad=True)
        log_gain = self._first_log_gain(views, number, target).requires_grad_()
        groups: list[dict[str, Any]] = [
            {"params": [twist], "lr": FIT_RATE},
            {"params": [log_gain], "lr": 10 * FIT_RATE},
        ]
        optimizer = torch.optim.Adam(groups)
        rates = [group["lr"] for group in optimizer.param_groups]
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / steps)
            camera = views.clip_from_camera[number] @ se3_exp(twist)[0] @ views.camera_from_unit[number]
            image = self.render(camera, views.resolution, torch.exp(log_gain))
            loss = (image - target)[window].abs().mean() + FIT_PRIOR * twist.square().sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            camera = views.clip_from_camera[number] @ se3_exp(twist)[0] @ views.camera_from_unit[number]
            return camera, torch.exp(log_gain)

    @torch.no_grad()
    def _first_log_gain(self, views: Views, number: int, target: torch.Tensor) -> torch.Tensor:
        """Return the log of the gain (3,) that fits the photo best at the given pose, by least squares.

        Exposure may be off by a factor that gradient steps would take too long to reach. On encoded values a gain
        acts as `expose` says, which is linear in gain^(1/2.4).
        """
        image = self.render(views.clip_from_camera[number] @ views.camera_from_unit[number], views.resolution)
        both = (image[..., 3] > 0.5) & (target[..., 3] > 0.5)
        drawn, photo = image[both][:, :3] + SRGB_OFFSET, target[both][:, :3] + SRGB_OFFSET
        if len(drawn) == 0:
            return torch.zeros(3, device=self.vertices.device)
        return SRGB_POWER * torch.log((drawn * photo).sum(0) / drawn.square().sum(0))
