"""Texture sampling against float64 references: values, gradients, seams, mip levels, hostile coordinates."""

import math

import numpy as np
import pytest
import reference_rasterizer as reference
import torch
from torch import Tensor

from reconstruction.rasterizer import get_rasterizer, sampling
from reconstruction.rasterizer.sampling import cube_direction, mip_level_from_derivatives, sample_levels
from reconstruction.rasterizer.torch_sampling import sample_pyramid

RASTERIZER = get_rasterizer("numba", torch.device("cpu"))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_bilinear_values_and_gradients_agree_with_reference(mode: str) -> None:
    texture = random(1, 5, 7, 3).requires_grad_()
    uv = (random(1, 20, 30, 2, seed=1) * 3 - 1).requires_grad_()
    weight = random(20, 30, 3, seed=2)
    out = RASTERIZER.texture(texture, uv, boundary_mode=mode)[0]
    grads = torch.autograd.grad((out * weight).sum(), (texture, uv))

    texture64, uv64 = texture.detach()[0].double().requires_grad_(), uv.detach()[0].double().requires_grad_()
    inside = uv64 if mode == "wrap" else uv64.clamp(0, 1)
    expected = reference.bilinear(
        texture64, inside[..., 0].reshape(-1), inside[..., 1].reshape(-1), wrap=mode == "wrap"
    ).reshape(20, 30, 3)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (texture64, uv64))
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(grads[0][0].double(), expected_grads[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grads[1][0].double(), expected_grads[1], atol=1e-4, rtol=1e-4)


def test_trilinear_mixes_the_levels_and_gives_gradients_to_level_and_texture() -> None:
    texture = random(1, 8, 16, 2).requires_grad_()
    uv = random(1, 10, 10, 2, seed=1)
    level = (random(1, 10, 10, seed=2) * 4.4 - 0.7).requires_grad_()  # also below the first and above the last
    weight = random(10, 10, 2, seed=3)
    out = RASTERIZER.texture(texture, uv, mip_level=level, filter_mode="linear-mipmap-linear")[0]
    grads = torch.autograd.grad((out * weight).sum(), (texture, level))

    texture64, level64 = texture.detach()[0].double().requires_grad_(), level.detach()[0].double().requires_grad_()
    mips = [texture64]
    for _ in range(3):
        last = mips[-1]
        mips.append((last[0::2, 0::2] + last[1::2, 0::2] + last[0::2, 1::2] + last[1::2, 1::2]) / 4)
    s, t = uv.double()[0].reshape(-1, 2).unbind(-1)
    samples = torch.stack([reference.bilinear(mip, s, t, wrap=True).reshape(10, 10, 2) for mip in mips])
    clamped = level64.clamp(0, 3)
    shares = torch.stack([(1 - (clamped - index).abs()).clamp_min(0) for index in range(4)])
    expected = (shares[..., None] * samples).sum(dim=0)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (texture64, level64))
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(grads[0][0].double(), expected_grads[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grads[1][0].double(), expected_grads[1], atol=1e-4, rtol=1e-4)


def test_a_batch_may_share_a_texture() -> None:
    shared = random(1, 6, 6, 3).requires_grad_()
    uv = random(2, 4, 4, 2, seed=1)
    apart = shared.detach().expand(2, -1, -1, -1).clone().requires_grad_()
    out, expected = RASTERIZER.texture(shared, uv), RASTERIZER.texture(apart, uv)
    torch.testing.assert_close(out, expected)
    (grad,) = torch.autograd.grad(out.square().sum(), shared)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), apart)
    torch.testing.assert_close(grad[0], expected_grad.sum(dim=0))


def test_mip_level_is_the_logarithm_of_texels_a_pixel() -> None:
    # 8 texels a pixel along u of a 64-wide texture; 2 along v of a 32-high one: the longer axis decides.
    uv_da = torch.tensor([8 / 64, 0.0, 0.0, 2 / 32])
    assert float(mip_level_from_derivatives(uv_da, 32, 64)) == pytest.approx(3.0, abs=1e-5)
    turn = math.radians(33)
    turned = torch.tensor([math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)]) * 4 / 64
    assert float(mip_level_from_derivatives(turned, 64, 64)) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("mode", ["wrap", "clamp", "cube"])
def test_coordinates_that_are_not_finite_or_huge_give_finite_colours(mode: str) -> None:
    cube = mode == "cube"
    bad = [math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0]
    uv = torch.tensor([[v] * (3 if cube else 2) for v in bad])[None, None].requires_grad_()
    texture = random(1, 6, 4, 4, 3) if cube else random(1, 4, 4, 3)
    out = RASTERIZER.texture(texture, uv, boundary_mode=mode)
    (grad,) = torch.autograd.grad(out.sum(), uv)
    assert torch.isfinite(out).all()
    assert torch.isfinite(grad).all()


def test_cube_texels_lie_where_opengl_puts_them() -> None:
    # OpenGL 4.6 table 8.19 in its own words: (sc, tc, ma) of each face, s = (sc / |ma| + 1) / 2.
    table = {
        0: (0, "-z", "-y"),
        1: (0, "z", "-y"),
        2: (1, "x", "z"),
        3: (1, "x", "-z"),
        4: (2, "x", "-y"),
        5: (2, "-x", "-y"),
    }
    size = 4
    cube = torch.arange(6.0 * size * size).reshape(1, 6, size, size, 1)
    directions, expected = [], []
    for face, (axis, s_name, t_name) in table.items():
        for row in range(size):
            for column in range(size):
                direction = [0.0, 0.0, 0.0]
                direction[axis] = 1.0 if face % 2 == 0 else -1.0
                for name, index in ((s_name, column), (t_name, row)):
                    value = (index + 0.5) / size * 2 - 1
                    direction["xyz".index(name[-1])] = -value if name[0] == "-" else value
                directions.append(direction)
                expected.append(float(cube[0, face, row, column, 0]))
    uv = torch.tensor(directions)[None, None] * 3.7
    out = RASTERIZER.texture(cube, uv, boundary_mode="cube")
    torch.testing.assert_close(out.reshape(-1), torch.tensor(expected), atol=1e-4, rtol=0)


def test_cube_maps_have_no_seams() -> None:
    # Steps across every edge and corner are as small as steps within a face.
    cube = random(1, 6, 4, 4, 1)
    turns = torch.linspace(0, 2 * math.pi, 4001)
    for axis in torch.nn.functional.normalize(torch.tensor([[0.0, 0, 1], [1, 0, 0], [1, 1, 0], [1, 2, 3]]), dim=1):
        start = torch.nn.functional.normalize(torch.linalg.cross(axis, torch.tensor([0.3, -0.5, 0.8])), dim=0)
        other = torch.linalg.cross(axis, start)
        circle = turns.cos()[:, None] * start + turns.sin()[:, None] * other
        values = RASTERIZER.texture(cube, circle[None, None], boundary_mode="cube").reshape(-1)
        assert values.diff().abs().max() < 0.01


def test_a_linear_function_survives_on_a_cube_map() -> None:
    # Texels of f(direction) = x + 2 y - z sampled between texels: off by the curvature only.
    size = 32
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    texels = np.array([[[cube_direction(face, s, t) for s in centres] for t in centres] for face in range(6)])
    texels /= np.linalg.norm(texels, axis=-1, keepdims=True)
    linear = torch.tensor([1.0, 2.0, -1.0])
    cube = (torch.tensor(texels).float() @ linear)[None, ..., None]
    directions = torch.nn.functional.normalize(
        torch.randn(1, 1, 500, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    out = RASTERIZER.texture(cube, directions, boundary_mode="cube")[..., 0]
    torch.testing.assert_close(out, directions @ linear, atol=0.01, rtol=0)


def test_cube_gradients_agree_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    mips = [random(1, 6, 8, 8, 3).requires_grad_(), random(1, 6, 4, 4, 3, seed=1).requires_grad_()]
    directions = torch.randn(1, 200, 3, generator=generator).requires_grad_()
    level = (random(1, 200, seed=2) * 0.9 + 0.05).requires_grad_()
    weight = torch.randn(1, 200, 3, generator=generator)

    def each(*inputs: Tensor) -> Tensor:
        samples = sample_levels(inputs[:2], inputs[2], inputs[3], "cube")
        return (samples.double() * weight).sum(dim=-1)[0]

    inputs = (*mips, directions, level)
    grads = torch.autograd.grad(each(*inputs).sum(), inputs)
    for index in range(4):
        plain = [tensor.detach() for tensor in inputs]
        step = torch.randn(plain[index].shape, generator=generator)
        width = 1.0 if index < 2 else 1e-3
        ahead, behind = list(plain), list(plain)
        ahead[index], behind[index] = plain[index] + width * step, plain[index] - width * step
        differences = (each(*ahead) - each(*behind)) / (2 * width)
        if index < 2:
            assert float((grads[index] * step).sum()) == pytest.approx(float(differences.sum()), rel=1e-4)
        else:
            obtained = (grads[index] * step).reshape(200, -1).sum(dim=1).double()
            close = (obtained - differences).abs() < 5e-3 * (1 + differences.abs())
            assert close.double().mean() > 0.95  # a few straddle texel centres, where the slope jumps


@pytest.mark.parametrize("mode", ["wrap", "clamp", "cube"])
@pytest.mark.parametrize("mipped", [False, True])
def test_the_torch_version_for_gpus_agrees_with_the_kernels(
    mode: str, mipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(5)
    cube = mode == "cube"
    mips = [torch.rand(1, *((6,) if cube else ()), size, size, 2, generator=generator) for size in (8, 4, 4)]
    mips = [mip.requires_grad_() for mip in mips]
    coordinates = torch.randn(1, 300, 3 if cube else 2, generator=generator).requires_grad_()
    level = (torch.rand(1, 300, generator=generator) * 3 - 0.5).requires_grad_() if mipped else None
    weight = torch.randn(1, 300, 2, generator=generator)
    inputs = [*mips, coordinates, level] if level is not None else [mips[0], coordinates]
    used = mips if mipped else mips[:1]

    expected = sample_levels(used, coordinates, level, mode)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    calls = []

    def run_in_torch(pyramid: Tensor, levels: Tensor, at: Tensor, level: Tensor, code: int) -> Tensor:
        calls.append(code)
        return sample_pyramid(pyramid, levels, at, level if mipped else None, mode)

    monkeypatch.setattr(sampling._Sample, "apply", run_in_torch)
    obtained = sample_levels(used, coordinates, level, mode)
    grads = torch.autograd.grad((obtained * weight).sum(), inputs)
    assert len(calls) == 1
    torch.testing.assert_close(obtained, expected, atol=1e-5, rtol=0)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-4, rtol=1e-3)


def test_missing_mip_information_and_wrong_shapes_are_refused() -> None:
    texture, uv = random(1, 4, 4, 3), random(1, 2, 2, 2)
    with pytest.raises(ValueError, match="needs uv_da or mip_level"):
        RASTERIZER.texture(texture, uv, filter_mode="linear-mipmap-linear")
    with pytest.raises(ValueError, match="uv: expected float32"):
        RASTERIZER.texture(random(1, 6, 4, 4, 3), uv, boundary_mode="cube")
