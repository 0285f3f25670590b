"""Make `spot-capture/` from the full-size rendered capture of spot: half the image size, the same poses.

    python tests/data/make_spot_capture.py SOURCE [OUT]

SOURCE holds `capture/` (a bundle) and `truth/` (mesh.obj, poses.json, masks/). The bundle is written here with
plain JSON rather than with `scan2twin.capture.writer`, so that the tests read a bundle from another hand.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import trimesh

SCALE = 2  # whole-number reduction: pixel areas map onto each other, so intrinsics divide exactly
JPEG_QUALITY = 85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent / "spot-capture")
    arguments = parser.parse_args()
    capture, truth = arguments.out / "capture", arguments.out / "truth"
    for folder in (capture, truth):
        shutil.rmtree(folder, ignore_errors=True)
    (capture / "images").mkdir(parents=True)
    (truth / "masks").mkdir(parents=True)
    make_bundle(arguments.source / "capture", capture)
    make_truth(arguments.source / "truth", truth)


def make_bundle(source: Path, out: Path) -> None:
    frames = [json.loads(line) for line in (source / "frames.jsonl").read_text().splitlines()]
    for frame in frames:
        image = cv2.imread(str(source / frame["file"]))
        frame["width"], frame["height"] = frame["width"] // SCALE, frame["height"] // SCALE
        frame["intrinsics"] = {name: value / SCALE for name, value in frame["intrinsics"].items()}
        image = cv2.resize(image, (frame["width"], frame["height"]), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(out / frame["file"]), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    (out / "frames.jsonl").write_text("".join(json.dumps(frame) + "\n" for frame in frames))
    document = json.loads((source / "capture.json").read_text())
    document["capture_id"] = "spot-small"
    document["name"] = "Spot, rendered, half size"
    document["files"] = [
        {
            "name": str(file.relative_to(out)),
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(out.rglob("*"))
        if file.is_file()
    ]
    (out / "capture.json").write_text(json.dumps(document, indent=1) + "\n")


def make_truth(source: Path, out: Path) -> None:
    shutil.copyfile(source / "poses.json", out / "poses.json")
    for file in sorted((source / "masks").glob("*.png")):
        mask = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        mask = cv2.resize(mask, (mask.shape[1] // SCALE, mask.shape[0] // SCALE), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(out / "masks" / file.name), mask, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    mesh = trimesh.load_mesh(source / "mesh.obj", process=False)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in mesh.vertices]  # 0.01 mm
    lines += [f"f {a} {b} {c}\n" for a, b, c in mesh.faces + 1]
    (out / "mesh.obj").write_text("# spot by Keenan Crane, public domain; metres, +Y up\n" + "".join(lines))


if __name__ == "__main__":
    main()
