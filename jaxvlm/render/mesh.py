"""Triangles with the facts of each face, ready for ray casting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int

from jaxvlm.render.shapes import Part


@dataclass(frozen=True)
class Surroundings:
    """What lights a scene and closes it above; metres, z up.

    Attributes:
      ambient: light that falls on every surface.
      skylight: light added to a surface that faces up, taken from one that faces down.
      lamps: point lights, each x, y, z and strength; none where colours hold their light already.
      ceiling: height of the plane that rays see which leave the scene upwards; None for none.
      ceiling_label, floor_label: values of `Mesh.label`.
      floor_pattern: "plain", "tiles" or "planks".
    """

    ambient: float = 1.0
    skylight: float = 0.0
    lamps: tuple[tuple[float, float, float, float], ...] = ()
    ceiling: float | None = None
    ceiling_label: int = 0
    floor_label: int = -1
    floor_pattern: str = "plain"


@dataclass(frozen=True)
class Mesh:
    """All faces of a scene. F faces.

    `corners` and corner `normals` in world metres and `rgb` in 0–1 are float32; `object_index`
    (-1 for what is no object) and `label` are int16; faces that are `one_sided` are seen only from
    where their normal points; `embree` is the ray-casting scene built from `corners`.
    """

    corners: Float[np.ndarray, "F 3 3"]
    normals: Float[np.ndarray, "F 3 3"]
    rgb: Float[np.ndarray, "F 3"]
    object_index: Int[np.ndarray, "F"]
    label: Int[np.ndarray, "F"]
    one_sided: Bool[np.ndarray, "F"]
    surroundings: Surroundings
    embree: EmbreeScene


def mesh_fields(
    parts: Sequence[Part],
    owners: Sequence[tuple[int, int]],
    one_sided: Sequence[bool],
    surroundings: Surroundings,
) -> dict:
    """The fields of a `Mesh` made of parts, each with its (object index, label) and sidedness."""
    counts = [len(part.corners) for part in parts]
    corners = np.concatenate([part.corners for part in parts])
    object_index, label = np.repeat(np.array(owners, np.int16), counts, axis=0).T
    return {
        "corners": corners,
        "normals": np.concatenate([part.normals for part in parts]),
        "rgb": np.repeat(np.array([part.rgb for part in parts], np.float32), counts, axis=0),
        "object_index": np.ascontiguousarray(object_index),
        "label": np.ascontiguousarray(label),
        "one_sided": np.repeat(np.array(one_sided, bool), counts),
        "surroundings": surroundings,
        "embree": embree_scene(corners),
    }


def embree_scene(corners: Float[np.ndarray, "F 3 3"]) -> EmbreeScene:
    """The ray-casting structure of triangles (some milliseconds a thousand)."""
    scene = EmbreeScene()
    faces = np.arange(3 * len(corners), dtype=np.int32).reshape(-1, 3)
    TriangleMesh(scene, np.ascontiguousarray(corners.reshape(-1, 3), np.float32), faces)
    return scene
