"""The CUDA back end against the CPU one: the same picture, the same gradients. Skips where either part is missing."""

from importlib.util import find_spec

import numpy as np
import pytest
import reference_rasterizer as reference
import torch
import trimesh

from reconstruction.light import EnvironmentLight
from reconstruction.rasterizer import get_rasterizer
from reconstruction.rasterizer.derivatives import attribute_derivatives
from reconstruction.shading import split_sum

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(find_spec("nvdiffrast") is None, reason="nvdiffrast is not installed (the user's choice)"),
]

SIZE = 128
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def render(device: torch.device) -> dict[str, torch.Tensor]:
    """Render a torus through every operation; returns images and gradients on the CPU."""
    mesh = trimesh.creation.torus(0.7, 0.3, major_sections=96, minor_sections=48)
    matrix = reference.perspective(45) @ reference.orbit(30, 35, 3.0)
    vertices = torch.tensor(np.array(mesh.vertices)).float()
    triangles = torch.tensor(np.array(mesh.faces), dtype=torch.int32, device=device)
    clip = reference.to_clip(vertices, matrix)[None].to(device).requires_grad_()
    uv = (vertices[None, :, :2] * 2).to(device).contiguous()
    texture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    rasterizer = get_rasterizer("auto", device)
    rast = rasterizer.rasterize(clip, triangles, (SIZE, SIZE))
    at = rasterizer.interpolate(uv, rast, triangles)
    uv_da = attribute_derivatives(uv, rast, clip, triangles)
    color = rasterizer.texture(texture, at, uv_da, filter_mode="linear-mipmap-linear")
    color = torch.where(rast[..., 3:] > 0, color, torch.zeros_like(color))
    image = rasterizer.antialias(color, rast, clip, triangles, rasterizer.build_topology(triangles))
    target = torch.linspace(0, 1, SIZE, device=device)[None, None, :, None]
    (image - target).square().sum().backward()
    results = {"rast": rast, "image": image, "texture_grad": texture.grad, "clip_grad": clip.grad}
    return {name: value.detach().cpu() for name, value in results.items()}


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return render(CPU), render(CUDA)


def test_the_same_triangles_are_seen_with_the_same_attributes(both) -> None:
    cpu, cuda = both[0]["rast"], both[1]["rast"]
    same = cpu[..., 3] == cuda[..., 3]
    assert same.float().mean() >= 0.999
    torch.testing.assert_close(cpu[same], cuda[same], atol=1e-4, rtol=0)


def test_the_same_colours_and_texture_gradients(both) -> None:
    # nvdiffrast misses silhouettes of triangles below a pixel, so images agree but for a few silhouette pixels.
    close = ((both[0]["image"] - both[1]["image"]).abs() < 1e-3).all(dim=-1)
    assert close.float().mean() > 0.98
    grads = [values["texture_grad"].flatten() for values in both]
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.98


def test_position_gradients_point_the_same_way(both) -> None:
    grads = [values["clip_grad"].flatten() for values in both]
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.8


def test_shading_is_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(1000, 3, generator=generator), dim=1)
    material = [torch.rand(1000, 1, generator=generator) for _ in ("roughness", "metallic")]
    light = EnvironmentLight(16)
    with torch.no_grad():
        light.log_radiance += torch.randn(light.log_radiance.shape, generator=generator)
    on_cpu = split_sum(normals, normals, *material, light.prefilter())
    light = light.to(CUDA)
    on_cuda = split_sum(*(tensor.to(CUDA) for tensor in (normals, normals, *material)), light.prefilter())
    for got, expected in zip(on_cuda, on_cpu, strict=True):
        torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=1e-3)
