"""KHR_draco_mesh_compression as trimesh's exporter applies it, with quantised attributes and free vertex order.

trimesh's own handler keeps the order of the vertices and exact normals and UVs, which makes meshes six times as large;
this one takes its place in trimesh's registry.
"""

from typing import Any

import DracoPy
import numpy as np
from trimesh.exchange.gltf.extensions import register_handler

DRACO = "KHR_draco_mesh_compression"
POSITION_BITS = 14  # of the longest side: 0.015 mm for an object of 0.25 m
UV_BITS = 14  # an eighth of a texel at 2048
NORMAL_BITS = 10  # octahedral: within 0.25°
LEVEL = 7  # of 10; higher is slower to decode

# The attributes that are compressed, by the names that glTF and Draco have for them.
KINDS = {
    "POSITION": DracoPy.AttributeType.POSITION,
    "NORMAL": DracoPy.AttributeType.NORMAL,
    "TEXCOORD_0": DracoPy.AttributeType.TEX_COORD,
}


@register_handler(DRACO, scope="primitive_export")
def compress(context: Any) -> bool:
    """Put a primitive's faces, positions, normals and UVs into one Draco buffer; `context` is as trimesh documents it.

    Draco permutes and splits vertices, so each accessor's count and bounds are those of the decoded arrays.
    """
    primitive, arrays, items = context["primitive"], context["arrays"], context["buffer_items"]
    attributes = primitive["attributes"]
    encoded = DracoPy.encode(
        arrays[attributes["POSITION"]],
        arrays[primitive["indices"]],
        normals=arrays[attributes["NORMAL"]].astype(np.float64),
        tex_coord=arrays[attributes["TEXCOORD_0"]].astype(np.float64),
        quantization_bits=POSITION_BITS,
        normal_quantization_bits=NORMAL_BITS,
        tex_coord_quantization_bits=UV_BITS,
        compression_level=LEVEL,
    )
    decoded = DracoPy.decode(encoded)
    written = {attribute["attribute_type"]: attribute for attribute in decoded.attributes}
    accessors = list(context["tree"]["accessors"].values())
    values = {attributes[name]: written[kind]["data"] for name, kind in KINDS.items()}
    values[primitive["indices"]] = decoded.faces.reshape(-1, 1)
    for index, data in values.items():
        accessors[index] |= {
            "count": len(data),
            "min": data.min(axis=0).tolist(),
            "max": data.max(axis=0).tolist(),
        }
        accessors[index].pop("byteOffset", None)  # it has no buffer view to be in
    items[DRACO] = encoded + bytes(-len(encoded) % 4)
    primitive["extensions"] = {
        DRACO: {
            "bufferView": items.index(DRACO),
            "attributes": {name: int(written[kind]["unique_id"]) for name, kind in KINDS.items()},
        }
    }
    return True
