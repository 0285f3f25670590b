"""The export and publish stages on a small surface, as the runner calls them."""

import hashlib
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from reconstruction import export, publish
from reconstruction.appearance import SceneLight, save_light
from reconstruction.bake import to_8bit
from reconstruction.cameras import clip_from_camera
from reconstruction.color import linear_to_srgb
from reconstruction.field import MaterialField
from reconstruction.gltf import read_glb, write_glb
from reconstruction.light import EnvironmentLight
from reconstruction.model import MATT, ModelInfo, TexturedModel
from reconstruction.preview import Studio, camera_rotation, floor_shadow, sky_directions
from reconstruction.rasterizer import get_rasterizer
from reconstruction.render import render_model
from reconstruction.view_renderer import render_view
from scan2twin.capture.models import Intrinsics
from scan2twin.config import ExportConfig, PublishConfig
from scan2twin.errors import InputError, ReconstructionError
from scan2twin.frames import Dataset, DatasetFrame
from scan2twin.progress import LogProgress
from scan2twin.stages import StageInputs, StageResult

VIEWS = 10
CONFIG = ExportConfig(texture_size=128, refine_iterations=8, turntable_frames=6, turntable_size=64)
SCALE, ORIGIN = 0.4, (0.5, 1.0, -2.0)  # unit frame to reference frame


def colorful_field() -> MaterialField:
    """A field whose colours change over about a tenth of the unit: only its coarsest level says anything."""
    field = MaterialField(seed=3)
    with torch.no_grad():
        field.grid.table.zero_()
        field.grid.table[0].normal_(0, 1, generator=torch.Generator().manual_seed(1))
        field.layers[-1].bias[:3] = torch.tensor([1.0, 0.0, -1.0])
    return field


def write_inputs(folder: Path, *, metric: bool = True) -> StageInputs:
    """An egg, upright, with the colours of a known field, and ten photos of it; the last two are held out."""
    for name in ("mask/images", "mask/masks", "reconstruct/heldout"):
        (folder / name).mkdir(parents=True)
    egg = trimesh.creation.icosphere(subdivisions=3)
    vertices, faces = (egg.vertices * (0.3, 0.5, 0.25)).astype(np.float32), egg.faces.astype(np.int32)
    np.savez(folder / "reconstruct" / "mesh.npz", vertices=vertices, faces=faces)
    field = colorful_field()
    field.save(folder / "reconstruct" / "field.pt")
    save_light(None, folder / "reconstruct")

    intrinsics, frames, clips = Intrinsics(fx=160, fy=160, cx=32, cy=32), [], []
    rasterizer = get_rasterizer("numba", torch.device("cpu"))
    for i in range(VIEWS):
        camera_to_unit = np.eye(4)
        camera_to_unit[:3, :3] = camera_rotation(2 * np.pi * i / VIEWS, 0.3 * (-1) ** i)
        camera_to_unit[:3, 3] = 3 * camera_to_unit[:3, 2]
        clips.append(clip_from_camera(intrinsics, 64, 64) @ np.linalg.inv(camera_to_unit))
        with torch.no_grad():
            rgba = render_view(
                rasterizer, torch.from_numpy(vertices), torch.from_numpy(faces), None, field,
                torch.from_numpy(clips[-1]).float(), 64,
            )  # fmt: skip
        photo = to_8bit(rgba.flip(0)).numpy()
        frame = DatasetFrame(
            index=i, image=f"images/{i}.png", mask=f"masks/{i}.png", camera_to_unit=camera_to_unit.tolist(),
            intrinsics=intrinsics, split="train" if i < VIEWS - 2 else "heldout", weight=1.0,
        )  # fmt: skip
        Image.fromarray(photo[..., :3]).save(folder / "mask" / frame.image)
        Image.fromarray(photo[..., 3]).save(folder / "mask" / frame.mask)
        frames.append(frame)
    unit_to_reference = [
        [SCALE, 0, 0, ORIGIN[0]], [0, SCALE, 0, ORIGIN[1]], [0, 0, SCALE, ORIGIN[2]], [0, 0, 0, 1],
    ]  # fmt: skip
    Dataset(
        capture_id="egg", resolution=64, metric=metric, object_size_unit=[0.6, 1, 0.5],
        unit_to_reference=unit_to_reference, frames=frames,
    ).write(folder / "mask" / "dataset.json")  # fmt: skip
    cameras = np.linalg.inv([frame.camera_to_unit for frame in frames]).astype(np.float32)
    gains = np.ones((VIEWS, 3), np.float32)
    train, heldout = np.arange(VIEWS - 2), np.arange(VIEWS - 2, VIEWS)
    np.savez(
        folder / "reconstruct" / "views.npz", index=train, camera_from_unit=cameras[train], gain=gains[train],
        weight=gains[train, 0],
    )  # fmt: skip
    np.savez(
        folder / "reconstruct" / "heldout" / "cameras.npz", index=heldout, gain=gains[heldout],
        clip_from_unit=np.array(clips, np.float32)[heldout],
    )  # fmt: skip
    return StageInputs({name: folder / name for name in ("mask", "reconstruct")}, {"mask": manifest("mask", 1, 1)})


def manifest(stage: str, seconds: float, memory: float, **more: Any) -> dict[str, Any]:
    return {
        "stage": stage, "fingerprint": hashlib.sha256(stage.encode()).hexdigest(), "metrics": {}, "warnings": [],
        "durations": {"total_s": seconds}, "peak_memory_mb": memory, "config": {"seed": 1, "resolution": 32},
        "code_version": "0.1.0", "libraries": {"numpy": "2.4"}, **more,
    }  # fmt: skip


MANIFESTS = {
    "refine_poses": manifest("refine_poses", 3, 200, metrics={"tracker_sigma_mm": 1.5}),
    "mask": manifest("mask", 5.5, 300, warnings=["12 frames are blurred; hold the phone still"]),
    "reconstruct": manifest("reconstruct", 80.25, 1500.5, metrics={"heldout_psnr": 30.0}),
    "export": manifest("export", 9.0, 700, metrics={"heldout_psnr": 31.5, "heldout_psnr_foreground": 27.25}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    outputs = tmp_path_factory.mktemp("export")
    return outputs, export.run(inputs, outputs, CONFIG, LogProgress())


def run_publish(exported_folder: Path, outputs: Path) -> dict[str, Any]:
    outputs.mkdir()
    folders = {**write_inputs(outputs.parent / "inputs").folders, "export": exported_folder}
    folders["refine_poses"] = folders["mask"]  # it has none of the files looked for: they are left out of the page
    publish.run(StageInputs(folders, MANIFESTS), outputs, PublishConfig(), LogProgress())
    report: dict[str, Any] = json.loads((outputs / "report.json").read_text())
    return report


def test_the_folder_holds_the_whole_model(exported: tuple[Path, StageResult]) -> None:
    folder, result = exported
    assert {path.name for path in folder.iterdir()} == {
        "model.glb", "model_web.glb", "model.usdz", "model.ply", "model.obj", "model.mtl", "model_basecolor.png",
        "model.json", "preview.png", "turntable.mp4", "heldout",
    }  # fmt: skip
    assert result.warnings == []
    assert result.metrics["triangles"] == 1280


@pytest.mark.parametrize(("share", "glossy"), [(0.6, True), (0.1, False)])
def test_gloss_is_exported_where_a_lamp_showed_it(share: float, glossy: bool, tmp_path: Path) -> None:
    inputs, outputs = write_inputs(tmp_path / "inputs"), tmp_path / "out"
    save_light(SceneLight(distance=3.0, share=share), inputs["reconstruct"])
    outputs.mkdir()
    config = CONFIG.model_copy(update={"turntable_frames": 0, "refine_iterations": 1})
    export.run(inputs, outputs, config, LogProgress())
    assert ModelInfo.read(outputs / "model.json").headlight_share == pytest.approx(share)
    _, material = read_glb(outputs / "model.glb")
    assert material.metallic_roughness is not None
    occlusion, roughness, metallic = (material.metallic_roughness[..., c] / 255 for c in range(3))
    assert occlusion.min() > 0.9  # an egg hides nothing from itself
    if glossy:
        assert 0.2 <= roughness.min() < roughness.max() <= 1
        assert 0 < metallic.mean() < 0.15  # as the field starts
    else:
        assert np.ptp(roughness) == 0
        assert roughness.mean() == pytest.approx(MATT, abs=0.002)
        assert metallic.max() == 0
        assert material.normal is None


def test_an_environment_goes_with_the_model_and_lights_its_pictures(tmp_path: Path) -> None:
    inputs, outputs = write_inputs(tmp_path / "inputs"), tmp_path / "out"
    environment = EnvironmentLight(32)
    with torch.no_grad():
        environment.log_radiance[4] = 3.0  # from +Z
    save_light(SceneLight(3.0, 0.0, environment), inputs["reconstruct"])
    outputs.mkdir()
    config = CONFIG.model_copy(update={"turntable_frames": 0, "refine_iterations": 1})
    export.run(inputs, outputs, config, LogProgress())
    assert ModelInfo.read(outputs / "model.json").environment == "environment.hdr"
    frames = []
    for name, azimuth in (("front", 0.0), ("back", np.pi)):
        camera = np.eye(4)
        camera[:3, :3] = camera_rotation(azimuth, 0.0)
        camera[:3, 3] = np.array(ORIGIN) + 1.2 * camera[:3, 2]
        frames.append({"file_path": name, "transform_matrix": camera.tolist()})
    (tmp_path / "cameras.json").write_text(json.dumps({"w": 64, "h": 64, "fl_x": 120, "frames": frames}))
    render_model(outputs, tmp_path / "cameras.json", tmp_path / "pictures", LogProgress(), maps=True)
    front, back = (
        np.asarray(Image.open(tmp_path / "pictures" / f"{name}.png").convert("RGB"), float)[24:40, 24:40].mean()
        for name in ("front", "back")
    )
    assert front > 1.5 * back
    row = np.asarray(Image.open(tmp_path / "pictures" / "front_maps.png"))
    assert row.shape == (64, 64 * 6, 4)
    albedo, normal, roughness, metallic, occlusion = (row[32, 64 * k + 32, :3].astype(int) for k in range(1, 6))
    assert np.ptp(albedo) > 5  # the field has colours
    assert np.abs(normal - (128, 128, 255)).max() < 25  # towards +Z, and the little that the field starts with
    assert np.abs(roughness / 255 - 0.6).max() < 0.1
    assert metallic.max() < 50
    assert occlusion.min() > 230

    (outputs / "environment.hdr").unlink()
    with pytest.raises(InputError, match=r"environment\.hdr: not a readable image"):
        render_model(outputs, tmp_path / "cameras.json", tmp_path / "again", LogProgress())


def test_the_finished_model_looks_like_the_heldout_photos(exported: tuple[Path, StageResult]) -> None:
    metrics = exported[1].metrics
    assert metrics["heldout_psnr"] > 35
    assert metrics["heldout_psnr_foreground"] > 30
    assert metrics["mask_iou_heldout"] > 0.98


def test_the_captures_own_cameras_see_the_photos_again(exported: tuple[Path, StageResult], tmp_path: Path) -> None:
    """All frames in a row: model to reference anchor, and cameras from the unit frame to the same."""
    inputs = write_inputs(tmp_path / "inputs")
    frames = []
    for frame in Dataset.read(inputs["mask"] / "dataset.json").frames:
        camera_to_reference = np.array(frame.camera_to_unit)
        camera_to_reference[:3, 3] = SCALE * camera_to_reference[:3, 3] + ORIGIN
        frames.append({"file_path": frame.image, "transform_matrix": camera_to_reference.tolist()})
    (tmp_path / "cameras.json").write_text(json.dumps({"w": 64, "h": 64, "fl_x": 160, "frames": frames}))
    render_model(exported[0], tmp_path / "cameras.json", tmp_path / "pictures", LogProgress())
    for i in range(VIEWS):
        seen = np.asarray(Image.open(tmp_path / "pictures" / f"{i}.png"), float)
        mask = np.asarray(Image.open(inputs["mask"] / "masks" / f"{i}.png"), float)
        photo = np.asarray(Image.open(inputs["mask"] / "images" / f"{i}.png"), float)
        assert np.abs(seen[..., 3] - mask).mean() < 1
        assert np.abs(seen[..., :3] - photo)[(mask == 255) & (seen[..., 3] == 255)].mean() < 3


def test_model_json_leads_back_to_the_reference_frame(exported: tuple[Path, StageResult]) -> None:
    info = ModelInfo.read(exported[0] / "model.json")
    mesh, _ = read_glb(exported[0] / "model.glb")
    assert info.size_m == pytest.approx([0.6 * SCALE, 1.0 * SCALE, 0.5 * SCALE], rel=0.01)
    assert mesh.vertices[:, 1].min() == 0
    matrix = np.array(info.model_to_reference)
    reference = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    assert (reference.min(axis=0) + reference.max(axis=0)) / 2 == pytest.approx(ORIGIN, abs=1e-3)


def test_the_texture_holds_the_field(exported: tuple[Path, StageResult]) -> None:
    """Ask the field itself at the surface, and trimesh for the colour there."""
    field = colorful_field()
    (mesh,) = trimesh.load_scene(exported[0] / "model.glb", process=False).geometry.values()
    info = ModelInfo.read(exported[0] / "model.json")
    middles = mesh.triangles.mean(axis=1)
    unit = (middles + np.array(info.model_to_reference)[:3, 3] - ORIGIN) / SCALE
    expected = linear_to_srgb(field(torch.from_numpy(unit).float()).albedo).detach().numpy() * 255
    assert expected.std(axis=0).min() > 5
    uv = mesh.visual.uv[mesh.faces].mean(axis=1)
    seen = trimesh.visual.color.uv_to_color(uv, mesh.visual.material.baseColorTexture)[:, :3]
    assert np.abs(seen - expected).mean() < 3  # half a texel of trimesh's nearest lookup, and 8 bits


def test_the_same_input_gives_the_same_bytes(exported: tuple[Path, StageResult], tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    export.run(write_inputs(tmp_path / "inputs"), again, CONFIG, LogProgress())
    for name in ("model.glb", "model.obj", "preview.png", "turntable.mp4"):
        assert (again / name).read_bytes() == (exported[0] / name).read_bytes(), name


def test_the_turntable_plays(exported: tuple[Path, StageResult]) -> None:
    with imageio.get_reader(exported[0] / "turntable.mp4") as video:
        meta = video.get_meta_data()
        frames = [np.asarray(frame, int) for frame in video]
    assert (meta["codec"], meta["pix_fmt"][:7], meta["size"]) == ("h264", "yuv420p", (64, 64))
    assert len(frames) == 6
    assert all(np.abs(a - b).mean() > 0.1 for a, b in pairwise(frames))  # it turns


def test_the_preview_is_well_composed(exported: tuple[Path, StageResult]) -> None:
    picture = np.asarray(Image.open(exported[0] / "preview.png").convert("RGB"), float)
    assert picture.shape == (1024, 1024, 3)
    coloured = np.ptp(picture, axis=2) > 8  # the field has colours, the backdrop has none
    rows, columns = np.flatnonzero(coloured.any(axis=1)), np.flatnonzero(coloured.any(axis=0))
    assert 700 < rows[-1] - rows[0] < 900
    assert abs(rows[0] + rows[-1] - 1023) < 20
    assert abs(columns[0] + columns[-1] - 1023) < 40
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 180).all()
    assert (corners < 240).all()


def test_an_unknown_scale_and_a_decimated_mesh_are_told(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_triangles": 300, "turntable_frames": 0, "refine_iterations": 0})
    (tmp_path / "out").mkdir()
    result = export.run(write_inputs(tmp_path / "in", metric=False), tmp_path / "out", config, LogProgress())
    assert any("decimated from 1280 to" in warning for warning in result.warnings)
    assert any("scale is unknown" in warning for warning in result.warnings)
    assert result.metrics["triangles"] <= 300
    assert not (tmp_path / "out" / "turntable.mp4").exists()
    assert not ModelInfo.read(tmp_path / "out" / "model.json").metric


def test_the_floor_under_a_disc_is_dark_and_the_open_floor_is_not() -> None:
    """A disc of radius r at height h hides r² / (r² + h²) of a cosine-weighted sky from the point below its middle."""
    disc = trimesh.creation.cylinder(radius=0.5, height=1e-4, sections=128)
    vertices = (disc.vertices[:, (0, 2, 1)] + (0, 0.5, 0)).astype(np.float32)
    shadow = floor_shadow(vertices, disc.faces.astype(np.int32), reach=2.0)
    middle = shadow.shape[0] // 2
    assert shadow[middle, middle] == pytest.approx(0.5, abs=0.05)
    assert shadow[0, 0] < 0.02
    assert shadow == pytest.approx(shadow[::-1], abs=0.08)  # the lights are few, not symmetric


def test_sky_directions_light_a_floor_evenly() -> None:
    directions = sky_directions(4096)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(1)
    assert directions[:, 1].min() > 0
    assert directions.mean(axis=0) == pytest.approx([0, 2 / 3, 0], abs=0.01)  # ∫ cos² / ∫ cos over the hemisphere


def test_publishing_copies_every_file_and_reports(exported: tuple[Path, StageResult], tmp_path: Path) -> None:
    report = run_publish(exported[0], tmp_path / "out")
    for path in filter(Path.is_file, exported[0].iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    info = ModelInfo.read(exported[0] / "model.json")
    assert report["heldout_psnr"] == 31.5
    assert report["heldout_psnr_foreground"] == 27.25
    assert report["mask_iou_heldout"] is None
    assert (report["triangles"], report["vertices"]) == (info.triangles, info.vertices)
    assert report["size_m"] == info.size_m
    assert report["stage_seconds"].pop("publish") >= 0
    assert report["stage_seconds"] == {"refine_poses": 3.0, "mask": 5.5, "reconstruct": 80.25, "export": 9.0}
    assert report["peak_memory_mb"] == 1500.5
    assert report["warnings"] == ["mask: 12 frames are blurred; hold the phone still"]
    assert report["versions"] == {"numpy": "2.4", "scan2twin": "0.1.0"}
    assert set(report["fingerprints"]) == set(report["config"]) == set(MANIFESTS)


def damaged(exported_folder: Path, folder: Path, **changes: Any) -> Path:
    """Copy an export and change its mesh, then make model.json agree with the change."""
    shutil.copytree(exported_folder, folder)
    mesh, material = read_glb(folder / "model.glb")
    mesh = replace(mesh, **{name: change(getattr(mesh, name)) for name, change in changes.items()})
    write_glb(TexturedModel(mesh, material, "egg", {}), folder / "model.glb")
    info = ModelInfo.read(folder / "model.json")
    size = np.nan_to_num(np.ptp(mesh.vertices, axis=0)).tolist()
    info.model_copy(update={"size_m": size, "triangles": len(mesh.faces)}).write(folder / "model.json")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vertices": lambda v: v * np.float32(1e4)}, "longest side is 4000 m"),
        ({"vertices": lambda v: v * np.float32(1e-4)}, "longest side is 4e-05 m"),
        ({"vertices": lambda v: np.where(np.arange(len(v))[:, None] == 5, np.float32(np.nan), v)}, "not finite"),
        ({"uv": lambda uv: uv * np.float32(np.inf)}, "not finite"),
    ],
)
def test_an_absurd_model_is_not_published(
    exported: tuple[Path, StageResult], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = damaged(exported[0], tmp_path / "export", **changes)
    with pytest.raises(ReconstructionError, match=message):
        run_publish(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_or_foreign_mesh_is_not_published(exported: tuple[Path, StageResult]) -> None:
    mesh, _ = read_glb(exported[0] / "model.glb")
    info = ModelInfo.read(exported[0] / "model.json")
    with pytest.raises(ReconstructionError, match="the mesh is empty"):
        publish.check_model(replace(mesh, faces=mesh.faces[:0]), info)
    with pytest.raises(ReconstructionError, match=r"counts are not those of model\.json"):
        publish.check_model(mesh, info.model_copy(update={"triangles": 7}))
    with pytest.raises(ReconstructionError, match=r"is not the \[9"):
        publish.check_model(mesh, info.model_copy(update={"size_m": [9.0, 9.0, 9.0]}))


def test_one_distance_fits_the_whole_turn(exported: tuple[Path, StageResult]) -> None:
    mesh, material = read_glb(exported[0] / "model.glb")
    studio = Studio(TexturedModel(mesh, material, "egg", {}))
    views = studio.cameras([0.0, 1.0, 2.0, 3.0], 100)
    for view in views:
        camera = (mesh.vertices - view.camera_to_world[:3, 3]) @ view.camera_to_world[:3, :3]
        x = view.intrinsics.cx - view.intrinsics.fx * camera[:, 0] / camera[:, 2]
        y = view.intrinsics.cy + view.intrinsics.fy * camera[:, 1] / camera[:, 2]
        assert min(x.min(), y.min()) > 5
        assert max(x.max(), y.max()) < 95
    assert len({round(float(np.linalg.norm(view.camera_to_world[[0, 2], 3])), 6) for view in views}) == 1
