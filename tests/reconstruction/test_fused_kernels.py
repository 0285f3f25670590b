"""The CPU's fused kernels give the values and gradients of the same formulas in torch, in double precision."""

from collections.abc import Callable, Sequence

import pytest
import torch
import trimesh
from torch import Tensor
from torch.nn import functional

from reconstruction.appearance import ReadyLight
from reconstruction.isosurface import surface_vertices, surface_vertices_torch
from reconstruction.light import PrefilteredLight
from reconstruction.photo_match import match, match_torch
from reconstruction.surface_normals import perturbed, perturbed_torch, vertex_normals, vertex_normals_torch
from reconstruction.view_renderer import decode, encode, relit

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(
    kernel: Callable[..., Sequence[Tensor]], reference: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor],
    tolerance: float = 2e-5,
) -> None:  # fmt: skip
    """Hold both to be equal, up to single precision, in value and in the gradients of a random combination."""
    found = []
    for function, dtype in ((kernel, torch.float32), (reference, torch.float64)):
        leaves = [tensor.detach().clone().to(dtype).requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        loss = sum((value * random(*value.shape, seed=9 + i).to(dtype)).sum() for i, value in enumerate(outputs))
        assert isinstance(loss, Tensor)
        loss.backward()
        found.append([*(value.detach() for value in outputs), *(leaf.grad for leaf in leaves)])
    for value, expected in zip(*found, strict=True):
        assert value.dtype == torch.float32
        scale = float(expected.abs().max())
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=tolerance * max(scale, 1.0))


def test_surface_vertices() -> None:
    edges = torch.stack([torch.arange(40), torch.arange(40).roll(7)], dim=1)
    sign = torch.where(torch.arange(40) % 14 < 7, 1.0, -1.0)
    crossed = edges[sign[edges[:, 0]] != sign[edges[:, 1]]]
    assert len(crossed) > 20
    sdf = sign * (0.1 + random(40, seed=0).abs())
    compare(
        lambda positions, sdf: [surface_vertices(positions, sdf, crossed)],
        lambda positions, sdf: [surface_vertices_torch(positions, sdf, crossed)],
        [random(40, 3, seed=1), sdf],
    )


def test_vertex_normals() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    vertices = torch.tensor(sphere.vertices).float() + 0.05 * random(len(sphere.vertices), 3, seed=0)
    faces = torch.tensor(sphere.faces).int()
    compare(
        lambda vertices: [vertex_normals(vertices, faces)],
        lambda vertices: [vertex_normals_torch(vertices, faces)],
        [vertices],
    )


def test_a_vertex_without_area_has_no_normal_and_no_gradient() -> None:
    vertices = torch.zeros(4, 3, requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2]], dtype=torch.int32))
    normals.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(normals, torch.zeros(4, 3))
    assert vertices.grad is not None
    assert torch.equal(vertices.grad, torch.zeros(4, 3))


def test_perturbed_normals() -> None:
    compare(
        lambda *inputs: [perturbed(*inputs)],
        lambda *inputs: [perturbed_torch(*inputs)],
        [0.3 + random(200, 3, seed=0), 0.7 * random(200, 3, seed=1)],
    )


@pytest.mark.parametrize("occluded", [False, True])
def test_response_to_an_environment_and_a_lamp(occluded: bool) -> None:
    """Cameras before and behind the surface, every roughness, and light that differs in every texel."""
    count, hidden = 300, torch.rand(300, 1, generator=torch.Generator().manual_seed(5))
    normals = functional.normalize(random(count, 3, seed=0), dim=1)
    to_camera = 1.5 * normals + random(count, 3, seed=1)
    assert ((normals * to_camera).sum(dim=1) < 0).sum() > 10
    roughness = 0.2 + 0.8 * torch.rand(count, 1, generator=torch.Generator().manual_seed(2))
    metallic = torch.rand(count, 1, generator=torch.Generator().manual_seed(3))
    diffuse = random(1, 6, 4, 4, 3, seed=4).exp()
    specular = [random(1, 6, side, side, 3, seed=side).exp() for side in (8, 4, 4)]

    def shaded(way: str) -> Callable[..., Sequence[Tensor]]:
        def run(*inputs: Tensor) -> Sequence[Tensor]:
            normals, to_camera, roughness, metallic, hidden, share, diffuse, *specular = inputs
            light = ReadyLight(share, 1.3, PrefilteredLight(diffuse, tuple(specular)))
            occlusion = hidden if occluded else None
            response = getattr(light, way)(normals, to_camera, roughness, metallic, occlusion)
            return [*response, 0 * hidden]

        return run

    compare(
        shaded("response"),
        shaded("response_torch"),
        [normals, to_camera, roughness, metallic, hidden, torch.tensor(0.4), diffuse, *specular],
    )


def test_response_repeats_bit_for_bit() -> None:
    normals = functional.normalize(random(500, 3, seed=0), dim=1)
    finish = torch.full((500, 1), 0.4)
    found = []
    for _ in range(2):
        specular = [random(1, 6, side, side, 3, seed=side).exp().requires_grad_() for side in (8, 4)]
        light = ReadyLight(torch.tensor(0.3), 1.0, PrefilteredLight(specular[1], tuple(specular)))
        sum(part.sum() for part in light.response(normals, 2 * normals, finish, finish)).backward()
        found.append([level.grad for level in specular])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("columns", [1, 3])
def test_relit_colours(columns: int) -> None:
    """Also where the light is below what sRGB 0 stands for, and encoding stops."""
    srgb = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    slope, offset = 0.5 + random(200, columns, seed=1).abs(), 0.1 * random(200, columns, seed=2)
    assert (decode(srgb) * slope + offset < 0).any()
    compare(
        lambda *inputs: [relit(*inputs)],
        lambda srgb, slope, offset: [encode(decode(srgb) * slope + offset)],
        [srgb, slope, offset],
    )


WINDOWS = [(slice(None), slice(None)), (slice(3, 20), slice(0, 9))]


@pytest.mark.parametrize("window", WINDOWS)
def test_match_of_a_rendering_and_its_photo(window: tuple[slice, slice]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(24, 24, 4, generator=generator)
    photo = torch.randint(0, 256, (24, 24, 4), generator=generator, dtype=torch.uint8)
    counts = torch.randint(0, 256, (24, 24), generator=generator, dtype=torch.uint8)
    background = torch.tensor([0.2, 0.7, 0.4])
    compare(
        lambda image: [match(image, photo, counts, background, window).fit],
        lambda image: [match_torch(image, photo, counts, background.double(), window).fit],
        [image],
    )
    found, expected = (way(image, photo, counts, background, window) for way in (match, match_torch))
    torch.testing.assert_close(found.squared_error, expected.squared_error, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.seen, expected.seen, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.drawn, expected.drawn)
    torch.testing.assert_close(found.photographed, expected.photographed)


def test_a_rendering_that_misses_the_object_says_nothing_of_its_exposure() -> None:
    photo, counts = torch.zeros(8, 8, 4, dtype=torch.uint8), torch.full((8, 8), 255, dtype=torch.uint8)
    for way in (match, match_torch):
        found = way(torch.ones(8, 8, 4), photo, counts, torch.zeros(3), WINDOWS[0])
        assert found.drawn is None
        assert found.photographed is None
        assert found.seen == 0
