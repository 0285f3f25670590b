"""The finished model as the exporters see it, and `model.json` that goes with it.

The *model* frame is glTF's (2.0, §3.4): metres, right-handed, +Y up; by default the middle of the object's underside
is at the origin. Its axes are the reference frame's, so `model_to_reference` is a translation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reconstruction.atlas import UvMesh
from scan2twin.frames import Document, Matrix4

MATT = 0.9  # perceptual roughness
Image = npt.NDArray[np.uint8]
Origin = Literal["floor", "center", "reference"]


@dataclass(frozen=True)
class Material:
    """Textures (S, S, 3) uint8, row 0 at v = 0; what is None is constant: `roughness`, metallic 0, no bumps."""

    base_color: Image  # sRGB
    metallic_roughness: Image | None = None  # linear, glTF 2.0 §3.9.2: G roughness, B metallic
    normal: Image | None = None  # tangent space, +Y up the image (§3.9.3): 128, 128, 255 is the plain normal
    occluded: bool = False  # whether R of metallic_roughness is ambient occlusion (§3.9.4)
    roughness: float = MATT  # a matt surface: a photographed colour already holds its highlights


@dataclass(frozen=True)
class TexturedModel:
    """A mesh in the model frame and its material."""

    mesh: UvMesh
    material: Material
    name: str  # of the object in the exported files
    provenance: Mapping[str, Any]  # plain JSON, kept in the GLB's asset.extras


class ModelInfo(Document):
    """`model.json`."""

    capture_id: str
    metric: bool  # False: the numbers have no known unit
    model_to_reference: Matrix4  # 4×4, row major: model frame to the reference anchor's frame
    size_m: list[float]  # x, y, z extent of the mesh
    triangles: int
    vertices: int  # of the GLB, where a vertex on a seam counts once for each chart
    texture_size: int  # side of a texture, texels
    # Part of the light that came from the camera, as a flash does; even light gave the rest. `render` draws with it.
    headlight_share: float = 0.0
    environment: str | None = None  # file with the light from all round, seen from the model, beside model.json


def reference_from_model(vertices: npt.NDArray[np.float64], origin: Origin = "floor") -> npt.NDArray[np.float64]:
    """Return `model_to_reference` (4, 4) for a mesh (V, 3) in the reference frame.

    The model's origin is the middle of its box's underside (floor), the box's middle (center) or the reference's own.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    model_to_reference = np.eye(4)
    if origin != "reference":
        model_to_reference[:3, 3] = (low + high) / 2
    if origin == "floor":
        model_to_reference[1, 3] = low[1]
    return model_to_reference
