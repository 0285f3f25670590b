"""The material field: what the surface looks like at any point of the unit frame."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from reconstruction.color import srgb_to_linear
from reconstruction.hashgrid import HashGrid
from scan2twin.errors import InputError

FIELD_EXTENT = 1.4  # side of the cube round the unit frame's origin that the field covers, unit-frame lengths
FORMAT = 3  # of field.pt
MIN_ROUGHNESS = 0.2  # a sharper highlight is smaller than the pixels and the mesh can show

STEEPEST_BUMP = 1.0  # longest component of the vector that tilts a normal: 45 degrees
CHANNEL_LEAST = (0.0, 0.0, 0.0, MIN_ROUGHNESS, 0.0, *(-STEEPEST_BUMP,) * 3)
CHANNEL_SCALE = (1.0, 1.0, 1.0, 1 - MIN_ROUGHNESS, 1.0, *(2 * STEEPEST_BUMP,) * 3)
CHANNELS = [3, 1, 1, 3]  # sRGB albedo, roughness, metallic, bump
VARIATION_REACH = 0.01  # unit-frame lengths
VARIATION_WEIGHT = (0.2, 0.2, 0.2, 1.0, 1.0, *(0.2,) * 3)  # of the channels; colour and relief do vary
START_LOGITS = (0.0, -2.0)  # roughness 0.6, metallic 0.12: a share that gradients can raise or lower


class Material(NamedTuple):
    """Appearance at N points, as in glTF 2.0. albedo (N, 3): linear RGB in [0, 1] (sRGB primaries, D65).

    roughness (N, 1): perceptual, its square is GGX's alpha. metallic (N, 1): share of metal. bump (N, 3): what tilts
    the surface's normals, in the field's frame (`reconstruction.surface_normals.perturbed`).
    """

    albedo: torch.Tensor
    roughness: torch.Tensor
    metallic: torch.Tensor
    bump: torch.Tensor


class MaterialField(nn.Module):
    """A hash grid and a small MLP: the volumetric texture of Munkberg et al. 2022, §3.2, encoded as Müller et al. 2022.

    The network predicts sRGB-encoded values, in which errors are measured and in which neighbouring colours are
    about equally spaced; callers get linear RGB.
    """

    def __init__(self, seed: int = 0, levels: int = 8, log2_entries: int = 15, width: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.options: dict[str, Any] = {"levels": levels, "log2_entries": log2_entries, "width": width}
        self.grid = HashGrid(levels, log2_entries, coarsest=16, finest=320, generator=generator)
        self.layers = nn.ModuleList(
            [nn.Linear(self.grid.features, width), nn.Linear(width, width), nn.Linear(width, sum(CHANNELS))]
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        assert isinstance(layer, nn.Linear)
        layer.bias.data[3:5] = torch.tensor(START_LOGITS)

    def albedo_srgb(self, points: torch.Tensor) -> torch.Tensor:
        """Return the sRGB-encoded albedo (N, 3) in [0, 1] at points (N, 3), float32, unit frame."""
        return self.channels(points)[:, :3]

    def channels(self, points: torch.Tensor) -> torch.Tensor:
        """Return what is encoded at points (N, 3), float32, unit frame: (N, 8), see `CHANNELS`."""
        hidden = self.grid(points / FIELD_EXTENT + 0.5)
        for layer in self.layers[:-1]:
            hidden = functional.relu(layer(hidden), inplace=True)
        values = torch.sigmoid(self.layers[-1](hidden))
        return values * values.new_tensor(CHANNEL_SCALE) + values.new_tensor(CHANNEL_LEAST)

    def forward(self, points: torch.Tensor) -> Material:
        """Return the material at points (N, 3), float32, unit frame."""
        srgb, roughness, metallic, bump = torch.split(self.channels(points), CHANNELS, dim=1)
        return Material(srgb_to_linear(srgb), roughness, metallic, bump)

    def variation(self, points: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return how much the material varies round points (N, 3): a scalar, 0 where it is constant.

        Munkberg et al. 2022, section 4, L_mat = mean |k(x) - k(x + e)| with a small random displacement e. What light
        does changes from point to point with the normal; a material seldom does.
        """
        near = points + VARIATION_REACH * torch.randn(points.shape, generator=generator, device="cpu").to(points.device)
        here, there = self.channels(torch.cat([points, near])).chunk(2)
        return ((here - there).abs() * here.new_tensor(VARIATION_WEIGHT)).sum(dim=1).mean()

    def save(self, path: Path) -> None:
        """Write the field to `path` (a torch file of plain tensors and numbers)."""
        torch.save({"format": FORMAT, "options": self.options, "state": self.state_dict()}, path)


def load_field(path: Path) -> MaterialField:
    """Read a field that `MaterialField.save` wrote; it is in evaluation mode and wants no gradients.

    Raises:
        InputError: the file is of another format.

    """
    document = torch.load(path, map_location="cpu", weights_only=True)
    if document.get("format") != FORMAT:
        raise InputError(f"{path.name}: field format {document.get('format')!r} is not {FORMAT}; run reconstruct again")
    field = MaterialField(**document["options"])
    field.load_state_dict(document["state"])
    return field.requires_grad_(False).eval()
