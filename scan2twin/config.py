"""Typed configuration: one section a stage, presets, unknown keys refused.

The resolved section of a stage is part of its fingerprint and is recorded in its manifest, so a section holds
only what changes the stage's output.
"""

import json
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scan2twin.errors import ConfigError


class Preset(StrEnum):
    """How much time a model may take."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"


class Section(BaseModel):
    """Base of every configuration section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ValidateConfig(Section):
    """Options of the validate stage."""

    min_frames: int = Field(8, ge=3, description="fewest usable frames that a capture may have")


class ConditionConfig(Section):
    """Options of the condition stage."""

    long_side: int = Field(1280, ge=128, le=8192, description="longest side of a conditioned frame, pixels")
    min_sharpness: float = Field(
        0.25, ge=0, lt=1, description="frames less sharp than this share of their neighbours are left out; 0 keeps all"
    )
    min_spacing: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="of two frames closer together than this share of the usual spacing, the less sharp is left out; "
        "0 keeps both",
    )


class CompensatePosesConfig(Section):
    """Options of the compensate_poses stage."""

    smooth_anchor: bool = Field(True, description="smooth the anchor's jitter between corrections of the world frame")


class RefinePosesConfig(Section):
    """Options of the refine_poses stage."""

    enabled: bool = Field(True, description="adjust the poses by bundle adjustment; false keeps the compensated ones")
    max_features: int = Field(3000, ge=100, le=20_000, description="features found in a frame at most")
    feature_side: int = Field(1000, ge=256, le=8192, description="longest side at which features are found, pixels")
    neighbours: int = Field(8, ge=2, le=50, description="views that each view is matched with")
    min_points: int = Field(20, ge=6, description="points a frame must share with others to be kept")
    refine_focal: bool = Field(True, description="adjust the focal length too, where all frames have the same")


class QualityLimits(Section):
    """What a capture must offer: beyond a `warn` limit the run says so, beyond a `refuse` limit it stops."""

    warn_views: int = Field(30, ge=0, description="warn of fewer views that show the object")
    refuse_views: int = Field(8, ge=8, description="refuse a capture with fewer views that show the object")
    warn_gap_deg: float = Field(60, ge=0, le=360, description="warn of a wider gap round the object without a view")
    refuse_gap_deg: float = Field(
        300, ge=0, le=360, description="refuse a capture with a wider gap round the object without a view"
    )
    warn_elevation_deg: float = Field(
        15, ge=0, le=180, description="warn if the views' heights, as angles from the object, span less"
    )
    warn_blurred: float = Field(0.2, ge=0, le=1, description="warn if a larger share of the photos is blurred")
    refuse_blurred: float = Field(0.7, ge=0, le=1, description="refuse a capture of which a larger share is blurred")
    warn_residual_px: float = Field(
        1.5, ge=0, description="warn if the refined poses' median reprojection error is larger, pixels"
    )
    refuse_residual_px: float = Field(5.0, ge=0, description="refuse a capture whose reprojection error is larger")
    warn_doubtful: float = Field(0.2, ge=0, le=1, description="warn if a larger share of the masks is doubtful")
    refuse_doubtful: float = Field(0.8, ge=0, le=1, description="refuse a capture of whose masks more are doubtful")


class MaskConfig(QualityLimits):
    """Options of the mask stage, which also judges whether the capture is good enough to go on."""

    backend: Literal["auto", "user", "network", "carvekit", "grabcut"] = Field(
        "auto",
        description="where masks come from: auto = the capture's own where it has them, else the network, and colours "
        "where that finds nothing; user = the capture's own only; network = the network only; carvekit = CarveKit's "
        "networks (scan2twin[carvekit]); grabcut = colours only, the last resort",
    )
    network: str | None = Field(
        None,
        description="another ONNX network (ISNet, BiRefNet, …) than u2netp: its path, or its name among those that "
        "`scan2twin weights fetch` has fetched",
    )
    network_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="refuse the file at `network` if it has another SHA-256"
    )
    network_normalisation: Literal["u2net", "isnet", "birefnet", "imagenet"] = Field(
        "isnet", description="how the network at `network` wants its pixels"
    )
    carvekit_network: Literal["tracer_b7", "u2net"] = Field("tracer_b7", description="CarveKit's segmentation network")
    carvekit_matting: bool = Field(True, description="find CarveKit's outlines by FBA matting")
    refine: bool = Field(True, description="bring the masks of all views into agreement, and crop to what they show")
    resolution: int = Field(512, ge=64, le=2048, description="side of a square crop, pixels")
    margin: float = Field(0.1, ge=0, le=1, description="space kept round the projected object box, as a share")
    heldout_every: int = Field(8, ge=0, description="every n-th view is held out to measure; 0 holds none out")
    exclude: tuple[int, ...] = Field((), description="frames to leave out, by their number on the contact sheet")
    llff: bool = Field(False, description="write the dataset in LLFF layout too, for nvdiffrec and NeRF")


class ReconstructConfig(Section):
    """Options of the reconstruct stage."""

    iterations: int = Field(800, ge=1, le=100_000, description="optimisation steps, one view each")
    resolution: int = Field(256, ge=32, le=2048, description="side of the images optimised against, pixels")
    grid: int = Field(44, ge=8, le=160, description="tetrahedral grid cells along the longest side, finest level")
    start: Literal["visual_hull", "sphere"] = Field("visual_hull", description="the shape the optimisation starts from")
    appearance: Literal["radiance", "flash", "environment"] = Field(
        "environment",
        description="radiance = colours as photographed; flash = also find how much light comes from the camera; "
        "environment = also find the light from all round, gloss and relief",
    )
    refine_cameras: bool = Field(True, description="correct each view's pose while optimising")
    tensorboard: bool = Field(False, description="also write TensorBoard scalars and pictures (scan2twin[tensorboard])")
    seed: int = Field(0, ge=0, description="of all random choices; on the CPU a run repeats bit for bit")


class ExportConfig(Section):
    """Options of the export stage."""

    texture_size: int = Field(1024, ge=64, le=8192, description="side of a texture, pixels")
    max_triangles: int = Field(100_000, ge=100, description="a finer mesh is decimated to this many triangles")
    refine_iterations: int = Field(
        150, ge=0, le=100_000, description="steps of fitting the baked texture to the photos, one photo each; 0 is none"
    )
    turntable_frames: int = Field(72, ge=0, le=720, description="frames of turntable.mp4, 24 a second; 0 makes none")
    turntable_size: int = Field(512, ge=64, le=2048, multiple_of=2, description="side of a turntable frame, pixels")
    formats: tuple[Literal["obj", "ply", "usdz"], ...] = Field(
        ("obj", "ply", "usdz"), description="files written beside model.glb"
    )
    levels: tuple[Literal["web", "ar"], ...] = Field(
        ("web",),
        description="smaller GLBs: web = 20,000 triangles and textures of 1024, ar = 100,000 and 2048; the USDZ is ar",
    )
    level_textures: Literal["jpeg", "webp", "png"] = Field(
        "jpeg", description="textures of the smaller GLBs; webp is smaller still, but not every program reads it"
    )
    level_compression: Literal["none", "draco"] = Field(
        "none", description="meshes of the smaller GLBs; draco is far smaller, but viewers need a decoder for it"
    )
    origin: Literal["floor", "center", "reference"] = Field(
        "floor",
        description="where the model's origin lies: floor = in the middle of its underside, center = in the middle of "
        "its box, reference = at the scan's anchor",
    )
    up: Literal["y", "z"] = Field("y", description="the axis that is up in OBJ and PLY; glTF and USDZ are always +Y up")


class PublishConfig(Section):
    """Options of the publish stage."""


class PipelineConfig(Section):
    """Every stage's section."""

    # `validate` is the stage's name; pydantic's deprecated method of that name is not used anywhere.
    validate_: ValidateConfig = Field(default_factory=ValidateConfig, alias="validate")
    condition: ConditionConfig = Field(default_factory=ConditionConfig)
    compensate_poses: CompensatePosesConfig = Field(default_factory=CompensatePosesConfig)
    refine_poses: RefinePosesConfig = Field(default_factory=RefinePosesConfig)
    mask: MaskConfig = Field(default_factory=MaskConfig)
    reconstruct: ReconstructConfig = Field(default_factory=ReconstructConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    publish: PublishConfig = Field(default_factory=PublishConfig)

    def section(self, stage: str) -> Section:
        """Return the section of the stage called `stage`."""
        section: Section = getattr(self, "validate_" if stage == "validate" else stage)
        return section


# What each preset changes against the defaults (which are `standard`).
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    Preset.DRAFT: {
        "reconstruct": {"iterations": 300, "grid": 32},
        "export": {"texture_size": 512, "refine_iterations": 60},
    },
    Preset.STANDARD: {},
    Preset.HIGH: {
        "reconstruct": {"iterations": 3000, "resolution": 512, "grid": 72},
        "export": {"texture_size": 2048, "refine_iterations": 400},
    },
}


def resolve_config(preset: str, overrides: dict[str, Any]) -> PipelineConfig:
    """Merge a preset with overrides of the form `{"reconstruct": {"iterations": 500}}` and check the result.

    Raises:
        ConfigError: a section, key or value is unknown or out of range; every reason is listed.

    """
    merged: dict[str, Any] = {name: dict(values) for name, values in PRESETS[Preset(preset)].items()}
    for name, values in overrides.items():
        if not isinstance(values, dict):
            raise ConfigError(f"config: {name}: expected a section with keys, got {json.dumps(values, default=str)}")
        merged[name] = {**merged.get(name, {}), **values}
    try:
        return PipelineConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(*(_reason(item) for item in error.errors())) from None


def _reason(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    got = json.dumps(item["input"], default=str)[:120]
    if item["type"] == "extra_forbidden":
        return f"config: {where}: no such option (value {got}); remove it or check its spelling"
    return f"config: {where}: {item['msg']}, got {got}"
