"""Fitting a held-out view's exposure and pose to a finished model."""

import numpy as np
import pytest
import torch
import trimesh

from reconstruction.cameras import clip_from_camera, inverse_rigid, se3_exp
from reconstruction.data import Views
from reconstruction.field import MaterialField
from reconstruction.finished_model import FinishedModel
from reconstruction.rasterizer import get_rasterizer
from scan2twin.capture.models import Intrinsics

SIDE = 64


@pytest.fixture(scope="module")
def model() -> FinishedModel:
    """A ball whose colours change over about a tenth of the unit."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    field = MaterialField(seed=3)
    with torch.no_grad():
        field.grid.table.zero_()
        field.grid.table[0].normal_(0, 2, generator=torch.Generator().manual_seed(1))
    return FinishedModel(
        torch.from_numpy(ball.vertices).float(), torch.from_numpy(ball.faces).int(), field.requires_grad_(False),
        get_rasterizer("numba", torch.device("cpu")),
    )  # fmt: skip


@pytest.mark.parametrize("gain", [(0.35, 0.35, 0.35), (1.9, 1.6, 1.2)])
def test_an_exposure_far_off_is_found(model: FinishedModel, gain: tuple[float, float, float]) -> None:
    """The photo is the model itself, exposed differently and seen from a pose a little off the given one."""
    clip = torch.from_numpy(clip_from_camera(Intrinsics(fx=90, fy=90, cx=32, cy=32), SIDE, SIDE)).float()
    camera_to_unit = np.eye(4)
    camera_to_unit[2, 3] = 2.0
    given = torch.from_numpy(inverse_rigid(camera_to_unit)).float()
    true = clip @ se3_exp(torch.tensor([[0.002, -0.003, 0.001, 0.003, -0.002, 0.0]]))[0] @ given
    with torch.no_grad():
        photo = (model.render(true, SIDE, torch.tensor(gain)).clamp(0, 1) * 255).round().byte()
    camera, found = model.fit_camera(Views((0,), photo[None], clip[None], given[None], torch.ones(1)), 0)
    assert found.numpy() == pytest.approx(np.array(gain), rel=0.03)
    assert (camera - true).abs().max() < 0.3 * (clip @ given - true).abs().max()
