"""`ReadyLight.response` under an environment as one pass over the points on the CPU, and its gradient as another.

The formulas are those of `reconstruction.appearance` and `reconstruction.shading`, which torch computes by some sixty
operations, each with a gradient and a trip through memory; they remain the reference and the way on other devices. Here
gradients are written out by the chain rule: d_x is the derivative of the loss by x. Strict float32, as in `hashgrid`;
only places on a cube's faces are float64, as in `rasterizer.sampling`. Sums are taken in the order of the points, so a
run repeats bit for bit.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from reconstruction.rasterizer.sampling import CLAMP, CUBE, Pyramid, cube_axes, locate, taps

_ZERO, _HALF, _ONE, _TWO, _FOUR = (np.float32(value) for value in (0, 0.5, 1, 2, 4))


@njit(inline="always")
def _mix(texels, at, channel):  # type: ignore[no-untyped-def]
    """Bilinear mean of a channel at `at`, from `taps`."""
    i00, i01, i10, i11, fx, fy = at
    top = texels[i00, channel] * (_ONE - fx) + texels[i01, channel] * fx
    bottom = texels[i10, channel] * (_ONE - fx) + texels[i11, channel] * fx
    return top * (_ONE - fy) + bottom * fy


@njit(inline="always")
def _slopes(texels, at, channel):  # type: ignore[no-untyped-def]
    """Derivatives of `_mix` by place, in texels."""
    i00, i01, i10, i11, fx, fy = at
    t00, t01, t10, t11 = texels[i00, channel], texels[i01, channel], texels[i10, channel], texels[i11, channel]
    return (_ONE - fy) * (t01 - t00) + fy * (t11 - t10), (_ONE - fx) * (t10 - t00) + fx * (t11 - t01)


@njit(inline="always")
def _spread(d_texels, at, channel, d_mixed):  # type: ignore[no-untyped-def]
    """Add to the derivatives of the texels that `_mix` took."""
    i00, i01, i10, i11, fx, fy = at
    d_texels[i00, channel] += d_mixed * (_ONE - fx) * (_ONE - fy)
    d_texels[i01, channel] += d_mixed * fx * (_ONE - fy)
    d_texels[i10, channel] += d_mixed * (_ONE - fx) * fy
    d_texels[i11, channel] += d_mixed * fx * fy


@njit(inline="always")
def _direction_gradient(x, y, z, s, t, d_s, d_t):  # type: ignore[no-untyped-def]
    """Derivative by a direction, given those by its place (s, t) on its cube face: see `locate`."""
    _, s_axis, s_sign, t_axis, t_sign, n_axis, n_sign = cube_axes(x, y, z)
    direction = (x, y, z)
    along_s = np.float32(0.5 * d_s * s_sign / (direction[n_axis] * n_sign))
    along_t = np.float32(0.5 * d_t * t_sign / (direction[n_axis] * n_sign))
    along_n = np.float32(-(d_s * (s - 0.5) + d_t * (t - 0.5)) / direction[n_axis])
    d_x = (
        (along_s if s_axis == 0 else _ZERO) + (along_t if t_axis == 0 else _ZERO) + (along_n if n_axis == 0 else _ZERO)
    )
    d_y = (
        (along_s if s_axis == 1 else _ZERO) + (along_t if t_axis == 1 else _ZERO) + (along_n if n_axis == 1 else _ZERO)
    )
    d_z = (
        (along_s if s_axis == 2 else _ZERO) + (along_t if t_axis == 2 else _ZERO) + (along_n if n_axis == 2 else _ZERO)
    )
    return d_x, d_y, d_z


@njit(inline="always")
def _mip(roughness, levels):  # type: ignore[no-untyped-def]
    """Lower specular level of a roughness, the next one, and the share of the latter."""
    last = len(levels) - 1
    level = min(max(roughness * np.float32(last), _ZERO), np.float32(last))
    lower = int(level)
    return lower, min(lower + 1, last), level - np.float32(lower)


@njit(inline="always")
def _retroreflection(cosine, roughness):  # type: ignore[no-untyped-def]
    """`appearance.retroreflection` and its derivatives by both arguments."""
    alpha2 = roughness * roughness * roughness * roughness
    cosine2 = cosine * cosine
    lobe = cosine2 * (alpha2 - _ONE) + _ONE
    root = np.sqrt(alpha2 + (_ONE - alpha2) * cosine2)
    masking = cosine + root
    value = alpha2 / (lobe * lobe * masking * masking)
    by_cosine = -_TWO * value * (
        _TWO * cosine * (alpha2 - _ONE) / lobe + (_ONE + (_ONE - alpha2) * cosine / root) / masking
    )  # fmt: skip
    by_alpha2 = _ONE / (lobe * lobe * masking * masking) - _TWO * value * (
        cosine2 / lobe + _HALF * (_ONE - cosine2) / (root * masking)
    )
    return value, by_cosine, by_alpha2 * _FOUR * roughness * roughness * roughness


@njit(cache=True, nogil=True)
def _forward(  # type: ignore[no-untyped-def]
    normals, to_camera, roughness, metallic, occlusion, share, reach2, f0,
    table, table_levels, diffuse, diffuse_levels, specular, specular_levels, slope, offset,
):  # fmt: skip
    for i in range(len(normals)):
        nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
        vx, vy, vz = to_camera[i, 0], to_camera[i, 1], to_camera[i, 2]
        rough, metal = roughness[i, 0], metallic[i, 0]
        distance2 = vx * vx + vy * vy + vz * vz
        inverse = _ONE / np.sqrt(distance2)
        vx, vy, vz = vx * inverse, vy * inverse, vz * inverse
        cosine = nx * vx + ny * vy + nz * vz
        rx, ry, rz = _TWO * cosine * nx - vx, _TWO * cosine * ny - vy, _TWO * cosine * nz - vz
        facing = max(cosine, _ZERO)
        lamp = share * reach2 / distance2 * facing
        gloss = lamp * _retroreflection(facing, rough)[0]
        matt = _ONE - metal

        _, s, t = locate((min(facing, _ONE), rough, _ZERO), CLAMP)
        at = taps(table_levels, 0, CLAMP, 0, s, t)
        scale, bias = _mix(table, at, 0), _mix(table, at, 1)
        face, s, t = locate((nx, ny, nz), CUBE)
        at = taps(diffuse_levels, 0, CUBE, face, s, t)
        lower, upper, fraction = _mip(rough, specular_levels)
        face, s, t = locate((rx, ry, rz), CUBE)
        below = taps(specular_levels, lower, CUBE, face, s, t)
        above = taps(specular_levels, upper, CUBE, face, s, t)
        rest = _ONE - share
        if len(occlusion) > 0:
            rest *= occlusion[i, 0]
        for c in range(3):
            reflected = (_ONE - fraction) * _mix(specular, below, c) + fraction * _mix(specular, above, c)
            base = matt * (_ONE - (f0 * scale + bias)) * _mix(diffuse, at, c)
            slope[i, c] = rest * (base + metal * scale * reflected) + lamp * matt + gloss * metal
            offset[i, c] = rest * ((matt * f0 * scale + bias) * reflected) + gloss * f0 * matt


@njit(cache=True, nogil=True)
def _backward(  # type: ignore[no-untyped-def]
    normals, to_camera, roughness, metallic, occlusion, share, reach2, f0,
    table, table_levels, diffuse, diffuse_levels, specular, specular_levels, d_slope, d_offset,
    d_normals, d_to_camera, d_roughness, d_metallic, d_occlusion, d_diffuse, d_specular,
):  # fmt: skip
    """Write the derivatives of what belongs to a point, add to those of the light, and return that of the share."""
    d_share = 0.0
    for i in range(len(normals)):
        nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
        ux, uy, uz = to_camera[i, 0], to_camera[i, 1], to_camera[i, 2]
        rough, metal = roughness[i, 0], metallic[i, 0]
        distance2 = ux * ux + uy * uy + uz * uz
        inverse = _ONE / np.sqrt(distance2)
        vx, vy, vz = ux * inverse, uy * inverse, uz * inverse
        cosine = nx * vx + ny * vy + nz * vz
        rx, ry, rz = _TWO * cosine * nx - vx, _TWO * cosine * ny - vy, _TWO * cosine * nz - vz
        facing = max(cosine, _ZERO)
        reached = reach2 / distance2 * facing
        retro, retro_by_cosine, retro_by_roughness = _retroreflection(facing, rough)
        matt = _ONE - metal

        # The environment, whose part of the light is `rest`.
        _, table_s, table_t = locate((min(facing, _ONE), rough, _ZERO), CLAMP)
        in_table = taps(table_levels, 0, CLAMP, 0, table_s, table_t)
        scale, bias = _mix(table, in_table, 0), _mix(table, in_table, 1)
        face, diffuse_s, diffuse_t = locate((nx, ny, nz), CUBE)
        around = taps(diffuse_levels, 0, CUBE, face, diffuse_s, diffuse_t)
        lower, upper, fraction = _mip(rough, specular_levels)
        face, mirror_s, mirror_t = locate((rx, ry, rz), CUBE)
        below = taps(specular_levels, lower, CUBE, face, mirror_s, mirror_t)
        above = taps(specular_levels, upper, CUBE, face, mirror_s, mirror_t)
        hidden = occlusion[i, 0] if len(occlusion) > 0 else _ONE
        rest = (_ONE - share) * hidden
        kept, sheen = _ONE - (f0 * scale + bias), matt * f0 * scale + bias
        d_rest, slopes, offsets = _ZERO, _ZERO, _ZERO
        by_irradiance, by_reflected, by_offset = _ZERO, _ZERO, _ZERO
        d_diffuse_s, d_diffuse_t, d_mirror_s, d_mirror_t, d_level = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        for c in range(3):
            low, high = _mix(specular, below, c), _mix(specular, above, c)
            reflected = (_ONE - fraction) * low + fraction * high
            irradiance = _mix(diffuse, around, c)
            d_a, d_b = d_slope[i, c], d_offset[i, c]
            slopes += d_a
            offsets += d_b
            d_rest += d_a * (matt * kept * irradiance + metal * scale * reflected) + d_b * sheen * reflected
            d_a, d_b = rest * d_a, rest * d_b
            by_irradiance += d_a * irradiance
            by_reflected += d_a * reflected
            by_offset += d_b * reflected
            d_irradiance, d_reflected = d_a * matt * kept, d_a * metal * scale + d_b * sheen
            _spread(d_diffuse, around, c, d_irradiance)
            _spread(d_specular, below, c, d_reflected * (_ONE - fraction))
            _spread(d_specular, above, c, d_reflected * fraction)
            by_s, by_t = _slopes(diffuse, around, c)
            d_diffuse_s += d_irradiance * by_s
            d_diffuse_t += d_irradiance * by_t
            by_s, by_t = _slopes(specular, below, c)
            size = np.float32(specular_levels[lower, 2]) * (_ONE - fraction)
            d_mirror_s += d_reflected * by_s * size
            d_mirror_t += d_reflected * by_t * size
            by_s, by_t = _slopes(specular, above, c)
            size = np.float32(specular_levels[upper, 2]) * fraction
            d_mirror_s += d_reflected * by_s * size
            d_mirror_t += d_reflected * by_t * size
            d_level += d_reflected * (high - low)
        size = np.float32(diffuse_levels[0, 2])
        d_factor = -by_irradiance * matt
        d_matt = by_irradiance * kept + by_offset * f0 * scale
        d_scale = d_factor * f0 + by_reflected * metal + by_offset * matt * f0
        d_bias = d_factor + by_offset
        d_metal = by_reflected * scale - d_matt
        d_rough, d_cosine = _ZERO, _ZERO
        if _ZERO < rough < _ONE:
            d_rough = d_level * np.float32(len(specular_levels) - 1)
        for c in range(2):
            by_s, by_t = _slopes(table, in_table, c)
            d_entry = d_scale if c == 0 else d_bias
            if _ZERO < cosine < _ONE:
                d_cosine += d_entry * by_s * np.float32(table_levels[0, 2])
            if _ZERO < rough < _ONE:
                d_rough += d_entry * by_t * np.float32(table_levels[0, 1])

        # The lamp, whose part of the light is `share`.
        by_lamp = slopes * (matt + retro * metal) + offsets * retro * f0 * matt
        lamp = share * reached
        d_retro = lamp * (slopes * metal + offsets * f0 * matt)
        d_metal += lamp * (slopes * (retro - _ONE) - offsets * retro * f0)
        d_rough += d_retro * retro_by_roughness
        d_distance2 = -by_lamp * lamp / distance2
        if cosine >= _ZERO:
            d_cosine += by_lamp * share * reach2 / distance2 + d_retro * retro_by_cosine
        d_share += by_lamp * reached - d_rest * hidden

        # Directions.
        d_rx, d_ry, d_rz = _direction_gradient(rx, ry, rz, mirror_s, mirror_t, d_mirror_s, d_mirror_t)
        d_nx, d_ny, d_nz = _direction_gradient(nx, ny, nz, diffuse_s, diffuse_t, d_diffuse_s * size, d_diffuse_t * size)
        d_cosine += _TWO * (d_rx * nx + d_ry * ny + d_rz * nz)
        d_normals[i, 0] = d_nx + _TWO * cosine * d_rx + d_cosine * vx
        d_normals[i, 1] = d_ny + _TWO * cosine * d_ry + d_cosine * vy
        d_normals[i, 2] = d_nz + _TWO * cosine * d_rz + d_cosine * vz
        d_vx, d_vy, d_vz = d_cosine * nx - d_rx, d_cosine * ny - d_ry, d_cosine * nz - d_rz
        along = d_vx * vx + d_vy * vy + d_vz * vz
        d_to_camera[i, 0] = inverse * (d_vx - vx * along) + _TWO * ux * d_distance2
        d_to_camera[i, 1] = inverse * (d_vy - vy * along) + _TWO * uy * d_distance2
        d_to_camera[i, 2] = inverse * (d_vz - vz * along) + _TWO * uz * d_distance2
        d_roughness[i, 0] = d_rough
        d_metallic[i, 0] = d_metal
        if len(occlusion) > 0:
            d_occlusion[i, 0] = d_rest * (_ONE - share)
    return d_share


class Respond(torch.autograd.Function):
    """Slope and offset (N, 3) of N points; tensors are float32 on the CPU, contiguous; `occlusion` may have no rows.

    `reach2` is the squared distance at which the lamp's share of the light is what it says; `f0` the reflectance of
    what is no metal; `table` holds the factors of F0, `diffuse` and `specular` the environment.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, normals: Tensor, to_camera: Tensor, roughness: Tensor, metallic: Tensor, occlusion: Tensor,
        share: Tensor, diffuse_texels: Tensor, specular_texels: Tensor, reach2: float, f0: float,
        table: Pyramid, diffuse: Pyramid, specular: Pyramid,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        slope, offset = torch.empty_like(normals), torch.empty_like(normals)
        tensors = (normals, to_camera, roughness, metallic, occlusion, share, diffuse_texels, specular_texels)
        ctx.save_for_backward(*tensors)
        ctx.constants = np.float32(reach2), np.float32(f0), table, diffuse.levels, specular.levels
        _forward(*_arguments(tensors, *ctx.constants), slope.numpy(), offset.numpy())
        return slope, offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        tensors = ctx.saved_tensors
        of_points = [torch.empty_like(tensor) for tensor in tensors[:5]]
        of_light = [torch.zeros_like(tensor) for tensor in tensors[6:]]
        d_share = _backward(
            *_arguments(tensors, *ctx.constants),
            *(grad.contiguous().numpy() for grad in grads),
            *(tensor.numpy() for tensor in of_points),
            *(tensor[0].numpy() for tensor in of_light),
        )
        return *of_points, tensors[5].new_tensor(d_share), *of_light, None, None, None, None, None


def _arguments(
    tensors: tuple[Tensor, ...],
    reach2: np.float32,
    f0: np.float32,
    table: Pyramid,
    diffuse_levels: Tensor,
    specular_levels: Tensor,
) -> tuple[Any, ...]:
    """Return the kernels' common arguments."""
    *of_points, share, diffuse, specular = (tensor.detach().numpy() for tensor in tensors)
    light = (
        table.texels[0].numpy(), table.levels.numpy(), diffuse[0], diffuse_levels.numpy(), specular[0],
        specular_levels.numpy(),
    )  # fmt: skip
    return *of_points, np.float32(share), reach2, f0, *light
