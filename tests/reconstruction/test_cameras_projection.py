import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from reconstruction.cameras import clip_from_camera, inverse_rigid, se3_exp, to_clip
from scan2twin.capture.models import Intrinsics

coordinate = st.floats(-0.6, 0.6)


@settings(deadline=None)
@given(
    x=coordinate, y=coordinate, z=st.floats(-4, -0.5), cx=st.floats(80, 240), cy=st.floats(80, 240),
    fx=st.floats(100, 900), fy=st.floats(100, 900),
)  # fmt: skip
def test_clip_space_agrees_with_the_pinhole_equations(x, y, z, cx, cy, fx, fy):
    width, height = 320, 256
    clip = clip_from_camera(Intrinsics(fx=fx, fy=fy, cx=cx, cy=cy), width, height) @ [x, y, z, 1]
    u = (clip[0] / clip[3] + 1) / 2 * width
    v = (1 - clip[1] / clip[3]) / 2 * height
    assert u == pytest.approx(fx * x / -z + cx, abs=1e-9)
    assert v == pytest.approx(cy - fy * y / -z, abs=1e-9)  # image rows grow downwards, camera +Y is up
    assert clip[3] == pytest.approx(-z)


def test_near_and_far_planes_are_the_ends_of_clip_depth():
    clip = clip_from_camera(Intrinsics(fx=100, fy=100, cx=50, cy=50), 100, 100, near=0.5, far=9.0)
    for depth, expected in ((0.5, -1.0), (9.0, 1.0)):
        x = clip @ [0, 0, -depth, 1]
        assert x[2] / x[3] == pytest.approx(expected)


def test_inverse_rigid_agrees_with_matrix_inversion():
    transforms = np.tile(np.eye(4), (20, 1, 1))
    transforms[:, :3, :3] = Rotation.random(20, random_state=1).as_matrix()
    transforms[:, :3, 3] = np.random.default_rng(1).normal(size=(20, 3))
    np.testing.assert_allclose(inverse_rigid(transforms), np.linalg.inv(transforms), atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_se3_rotation_agrees_with_scipy(rotation_vector):
    twist = torch.tensor([[*rotation_vector, 0.1, -0.2, 0.3]], dtype=torch.float64)
    transform = se3_exp(twist)[0].numpy()
    np.testing.assert_allclose(transform[:3, :3], Rotation.from_rotvec(rotation_vector).as_matrix(), atol=1e-9)
    np.testing.assert_allclose(transform[:, 3], [0.1, -0.2, 0.3, 1])


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.3, 2.0])
def test_se3_gradient_agrees_with_finite_differences(scale):
    twist = (scale * torch.tensor([[0.3, -0.5, 0.8, 0.1, 0.2, 0.3]], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(se3_exp, twist, eps=1e-5, atol=1e-5)


def test_to_clip_applies_the_matrix_to_homogeneous_points():
    generator = torch.Generator().manual_seed(0)
    points, matrix = torch.rand(7, 3, generator=generator), torch.rand(2, 4, 4, generator=generator)
    homogeneous = torch.cat([points, torch.ones(7, 1)], dim=1)
    expected = torch.einsum("bij,vj->bvi", matrix, homogeneous)
    torch.testing.assert_close(to_clip(points, matrix), expected)
