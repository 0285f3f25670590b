"""Pictures of a finished model from given cameras, without a window or a GPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reconstruction.appearance import SceneLight, camera_centre, read_environment
from reconstruction.atlas import UvMesh, vertex_tangents
from reconstruction.bake import CPU, to_8bit
from reconstruction.cameras import clip_from_camera, inverse_rigid, to_clip
from reconstruction.color import linear_to_srgb, srgb_to_linear
from reconstruction.gltf import read_glb
from reconstruction.maps import CHANNELS, from_material, mip_level, respond, tangent_frame, tilted
from reconstruction.model import Material, ModelInfo
from reconstruction.rasterizer import get_rasterizer
from reconstruction.rasterizer.derivatives import pixel_derivatives
from reconstruction.rasterizer.sampling import build_mips, stack_levels
from scan2twin.capture.models import Intrinsics
from scan2twin.errors import InputError
from scan2twin.progress import Progress

Tensor = torch.Tensor
Matrix = npt.NDArray[np.float64]

CHUNK = 65_536  # samples looked up and shaded at once: bounds the memory
STILL_SUPERSAMPLING = 2  # for single pictures: 9 dB closer to the limit of many samples than 1
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".heic", ".exr", ".tif", ".tiff"}
BLENDER_SIDE = 800  # pixels: side of the pictures where a transforms.json states none, as in NeRF's Blender scenes


@dataclass(frozen=True)
class View:
    """A pinhole camera and the size of its picture."""

    name: str  # of the picture, without suffix
    camera_to_world: Matrix  # (4, 4) rigid, OpenGL axes
    intrinsics: Intrinsics
    width: int
    height: int


class Samples(NamedTuple):
    """What some samples of a picture see: N of its h·w.

    place (N,) counts through rows; point (N, 3); frame as from `tangent_frame`; maps (N, 8), colours linear.
    """

    place: Tensor
    point: Tensor
    frame: tuple[Tensor, Tensor, Tensor]
    maps: Tensor


class Renderer:
    """A textured mesh ready to be drawn many times."""

    def __init__(self, mesh: UvMesh, material: Material, light: SceneLight | None = None) -> None:
        vertices, _, faces = mesh.welded()
        self._rasterizer = get_rasterizer("numba", CPU)
        self._vertices, self._faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
        # Silhouettes are found on the closed surface: the mesh above is open along every seam of the atlas.
        self._welded_vertices, self._welded_faces = torch.from_numpy(vertices), torch.from_numpy(faces)
        self._topology = self._rasterizer.build_topology(self._welded_faces)
        maps = from_material(material)
        self._texture_size = maps.shape[0]
        textures = torch.cat([srgb_to_linear(maps[..., :3]), maps[..., 3:]], dim=2)[None]
        self._textures = stack_levels(build_mips(textures, cube=False), "clamp")
        self._light = None if light is None else light.ready()
        self._attributes = torch.from_numpy(
            np.concatenate([mesh.uv, mesh.vertices, mesh.normals, vertex_tangents(mesh)], axis=1)
        )[None]
        self._middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        self._radius = float(np.linalg.norm(vertices - self._middle, axis=1).max())

    def draw(self, view: View, supersampling: int = STILL_SUPERSAMPLING) -> Tensor:
        """Draw what `view` sees, exposed for its distance from the model; see `draw_through`."""
        clip_from_world, distance = self._camera(view)
        return self.draw_through(clip_from_world, (view.height, view.width), supersampling, distance)

    @torch.no_grad()
    def draw_through(
        self,
        clip_from_world: Tensor,
        resolution: tuple[int, int],
        supersampling: int = STILL_SUPERSAMPLING,
        exposed_for: float | None = None,
    ) -> Tensor:
        """Draw the mesh through the matrix (4, 4) to clip space; returns (height, width, 4) float32, row 0 at the top.

        The colour is linear light multiplied by the coverage in channel 3. `supersampling` counts samples a pixel
        along each axis, under the rasteriser's own antialiasing of silhouettes. A headlight shows albedo at the
        distance `exposed_for`, in the mesh's unit; by default at the light's own.
        """
        rast, clip = self._rasterize(clip_from_world, resolution, supersampling)
        image, centre = rast.new_zeros(rast.shape), camera_centre(clip_from_world)
        for seen in self._samples(rast, clip):
            color = seen.maps[:, :3]
            if self._light is not None:
                response = respond(self._light, seen.frame, centre - seen.point, seen.maps[:, 3:], exposed_for)
                color = color * response.slope + response.offset
            _put(image, seen.place, color)
        return self._resolve(image, rast, clip_from_world, supersampling)

    @torch.no_grad()
    def draw_maps(self, view: View) -> dict[str, Tensor]:
        """Draw what the model is made of, as `view` sees it: (H, W, 4) each, as `draw` gives it.

        Albedo is linear as it is; what is no colour is shown by the grey, or for normals (x, y, z in the mesh's frame,
        0.5 is 0) the colour, whose sRGB value it is.
        """
        clip_from_world, _ = self._camera(view)
        rast, clip = self._rasterize(clip_from_world, (view.height, view.width), STILL_SUPERSAMPLING)
        names = ("albedo", "normal", "roughness", "metallic", "occlusion")
        layers = {name: rast.new_zeros(rast.shape) for name in names}
        for seen in self._samples(rast, clip):
            color, roughness, metallic, slope, occlusion = torch.split(seen.maps, CHANNELS, dim=1)
            shades = (tilted(seen.frame, slope) / 2 + 0.5, roughness, metallic, occlusion)
            for layer, shown in zip(layers.values(), (color, *map(srgb_to_linear, shades)), strict=True):
                _put(layer, seen.place, shown)
        return {
            name: self._resolve(layer, rast, clip_from_world, STILL_SUPERSAMPLING) for name, layer in layers.items()
        }

    def _camera(self, view: View) -> tuple[Tensor, float]:
        """Return the matrix (4, 4) from the mesh's frame to clip space, and the distance to the mesh's middle."""
        distance = float(np.linalg.norm(view.camera_to_world[:3, 3] - self._middle))
        near, far = max(distance - 1.01 * self._radius, 0.001 * self._radius), distance + 1.01 * self._radius
        projection = clip_from_camera(view.intrinsics, view.width, view.height, near, far)
        return torch.from_numpy(projection @ inverse_rigid(view.camera_to_world)).float(), distance

    def _rasterize(
        self, clip_from_world: Tensor, resolution: tuple[int, int], supersampling: int
    ) -> tuple[Tensor, Tensor]:
        """Return what every sample sees (1, h, w, 4), and the mesh in clip space (1, V, 4)."""
        height, width = resolution
        clip = to_clip(self._vertices, clip_from_world[None])
        return self._rasterizer.rasterize(clip, self._faces, (height * supersampling, width * supersampling)), clip

    def _samples(self, rast: Tensor, clip: Tensor) -> Iterator[Samples]:
        """Look every map up where the mesh is seen, `CHUNK` samples at a time."""
        _, _, width, _ = rast.shape
        flat = rast.view(1, 1, -1, 4)
        for place in torch.split(torch.nonzero(flat[0, 0, :, 3] > 0).squeeze(1), CHUNK):
            attributes = self._rasterizer.interpolate(self._attributes, flat[:, :, place], self._faces)[0, 0]
            uv, point, normal, tangent = torch.split(attributes, [2, 3, 3, 4], dim=1)
            image, row, column = torch.zeros_like(place), place // width, place % width
            uv_da = pixel_derivatives(self._attributes[..., :2], rast, clip, self._faces, image, row, column)
            maps = self._textures.sample(uv[None], mip_level(uv_da, self._texture_size)[None])[0]
            yield Samples(place, point, tangent_frame(normal, tangent), maps)

    def _resolve(self, image: Tensor, rast: Tensor, clip_from_world: Tensor, supersampling: int) -> Tensor:
        """Antialias and shrink the samples' colours and coverage (1, h, w, 4): (H, W, 4)."""
        welded_clip = to_clip(self._welded_vertices, clip_from_world[None])
        image = self._rasterizer.antialias(image, rast, welded_clip, self._welded_faces, self._topology)
        image = torch.nn.functional.avg_pool2d(image.permute(0, 3, 1, 2), supersampling)
        return image[0].permute(1, 2, 0).flip(0)


def _put(image: Tensor, place: Tensor, color: Tensor) -> None:
    """Write colours (N, 3), or greys (N, 1), and full coverage at these places of an image (1, h, w, 4)."""
    flat = image.view(-1, 4)
    flat[place] = torch.cat([color.expand(-1, 3), color.new_ones(len(place), 1)], dim=1)


def straight_srgb(image: Tensor) -> Tensor:
    """Turn a drawn image (H, W, 4) into sRGB in [0, 1] with straight alpha."""
    alpha = image[..., 3:]
    return torch.cat([linear_to_srgb((image[..., :3] / alpha.clamp_min(1e-6)).clamp(0, 1)), alpha], dim=2)


def to_rgba8(image: Tensor) -> npt.NDArray[np.uint8]:
    """Turn a drawn image (H, W, 4) into 8-bit sRGB with straight alpha."""
    rgba: npt.NDArray[np.uint8] = to_8bit(straight_srgb(image)).numpy()
    return rgba


def render_model(model_dir: Path, cameras: Path, out_dir: Path, progress: Progress, maps: bool = False) -> None:
    """Draw the published model in `model_dir` from each camera of `cameras` into `out_dir`, one RGBA PNG each.

    With `maps` there is also NAME_maps.png: the picture, albedo, normal, roughness, metallic and occlusion in a row.

    `cameras` is a transforms.json whose camera-to-world matrices (OpenGL axes, metres) lead to the reference
    frame, so that a capture's own cameras can be given. A picture is named after its frame's `file_path`.

    Raises:
        InputError: the folder holds no model, or the camera file is wrong; nothing is written then.

    """
    views = read_views(cameras)
    info_file = model_dir / "model.json"
    try:
        info = ModelInfo.read(info_file)
    except (OSError, ValidationError) as error:
        raise InputError(f"{info_file}: not a model that `scan2twin run` left: {error}") from None
    reference_to_model = np.linalg.inv(np.array(info.model_to_reference))
    mesh, material = read_glb(model_dir / "model.glb")
    # Every camera is exposed for its own distance, so the light's own does not matter.
    environment = None if info.environment is None else read_environment(model_dir / info.environment)
    light = None
    if environment is not None or info.headlight_share:
        light = SceneLight(1.0, info.headlight_share, environment).requires_grad_(False)
    renderer = Renderer(mesh, material, light)
    out_dir.mkdir(parents=True, exist_ok=True)
    progress.start("render", len(views))
    for view in views:
        moved = replace(view, camera_to_world=reference_to_model @ view.camera_to_world)
        picture = to_rgba8(renderer.draw(moved))
        Image.fromarray(picture).save(out_dir / f"{view.name}.png")
        if maps:
            row = [picture, *(to_rgba8(layer) for layer in renderer.draw_maps(moved).values())]
            Image.fromarray(np.concatenate(row, axis=1)).save(out_dir / f"{view.name}_maps.png")
        progress.advance()


class _Optics(BaseModel):
    """What transforms.json says of a camera, for all frames or for one."""

    model_config = ConfigDict(allow_inf_nan=False)

    w: int | None = Field(None, ge=1, le=16384)
    h: int | None = Field(None, ge=1, le=16384)
    fl_x: float | None = Field(None, gt=0)
    fl_y: float | None = Field(None, gt=0)
    cx: float | None = None
    cy: float | None = None
    camera_angle_x: float | None = Field(None, gt=0, lt=np.pi)  # radians
    camera_angle_y: float | None = Field(None, gt=0, lt=np.pi)
    k1: float = 0
    k2: float = 0
    p1: float = 0
    p2: float = 0


class _Frame(_Optics):
    file_path: str
    transform_matrix: list[list[float]]


class _Transforms(_Optics):
    frames: list[_Frame] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_bytes())


def read_views(path: Path) -> Sequence[View]:
    """Read the cameras of a transforms.json; what a frame does not say of its optics, the file's top level says.

    Where no picture size is given it is 800×800, and the principal point is then, as by default, its middle.

    Raises:
        InputError: unreadable, no focal length, a lens distortion, a matrix that is not rigid, or two frames
            that would give pictures of one name; every reason found is listed.

    """
    try:
        document = _Transforms.read(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        found = (f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(*found) from None
    views, reasons = [], []
    shared = document.model_dump(exclude={"frames"}, exclude_unset=True)
    for i, frame in enumerate(document.frames):
        where = f"{path}: frames[{i}] ({frame.file_path})"
        try:
            views.append(_view(frame.model_copy(update={**shared, **frame.model_dump(exclude_unset=True)})))
        except ValueError as error:
            reasons.append(f"{where}: {error}")
    names = [view.name for view in views]
    reasons += [
        f"{path}: {names.count(name)} frames would be written as {name}.png; rename their file_path"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if reasons:
        raise InputError(*reasons)
    return views


def _view(frame: _Frame) -> View:
    file = PurePosixPath(frame.file_path)
    name = file.stem if file.suffix.lower() in IMAGE_SUFFIXES else file.name
    if not name or name == "..":
        raise ValueError("file_path names no file; the picture takes its name from it")
    width, height = frame.w or BLENDER_SIDE, frame.h or BLENDER_SIDE
    fx, fy = frame.fl_x, frame.fl_y
    if fx is None and frame.camera_angle_x is not None:
        fx = width / 2 / np.tan(frame.camera_angle_x / 2)
    if fy is None and frame.camera_angle_y is not None:
        fy = height / 2 / np.tan(frame.camera_angle_y / 2)
    fx, fy = fx or fy, fy or fx
    if fx is None or fy is None:
        raise ValueError("no focal length; give fl_x (pixels) or camera_angle_x (radians)")
    if any((frame.k1, frame.k2, frame.p1, frame.p2)):
        raise ValueError("k1, k2, p1, p2: only pinhole cameras are drawn; set them to 0 and undistort the photos")
    if [len(row) for row in frame.transform_matrix] != [4, 4, 4, 4]:
        raise ValueError("transform_matrix is not 4×4")
    matrix = np.array(frame.transform_matrix)
    rotation = matrix[:3, :3]
    if not np.allclose([*matrix[3], *(rotation @ rotation.T).flat], [0, 0, 0, 1, *np.eye(3).flat], atol=1e-3):
        raise ValueError("transform_matrix is not a rotation and a translation; remove any scale from it")
    return View(
        name=name,
        camera_to_world=matrix,
        intrinsics=Intrinsics(
            fx=fx,
            fy=fy,
            cx=width / 2 if frame.cx is None else frame.cx,
            cy=height / 2 if frame.cy is None else frame.cy,
        ),
        width=width,
        height=height,
    )
