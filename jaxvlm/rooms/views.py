"""All views of a room with their dense labels."""

import numpy as np

from jaxvlm.render.raycast import Rendering, render
from jaxvlm.rooms.cameras import room_cameras
from jaxvlm.rooms.labels import COLOUR_LABELS
from jaxvlm.rooms.mesh import room_mesh
from jaxvlm.rooms.scene import Room


def render_views(room: Room, num_views: int, size: int | tuple[int, int]) -> dict[str, np.ndarray]:
    """All views of a room, for training on dense labels.

    Returns `rgb` u8[V,H,W,3], `depth` f32[V,H,W] metres, `cam_to_world` f64[V,4,4],
    `K` f64[V,3,3] pixels, `kind_map` i16[V,H,W] into `KIND_LABELS`, `colour_map` i16[V,H,W]
    into `COLOUR_LABELS`, `object_index` i16[V,H,W].
    """
    mesh = room_mesh(room)
    cameras = room_cameras(mesh, num_views)
    views = [render(mesh, camera, size) for camera in cameras]
    height, width = views[0].depth.shape
    return {
        "rgb": np.stack([view.rgb for view in views]),
        "depth": np.stack([view.depth for view in views]),
        "cam_to_world": np.stack([camera.cam_to_world for camera in cameras]),
        "K": np.stack([camera.intrinsics(width, height) for camera in cameras]),
        "kind_map": np.stack([view.kind_map for view in views]),
        "colour_map": np.stack([colour_map(room, view) for view in views]),
        "object_index": np.stack([view.object_index for view in views]),
    }


def colour_map(room: Room, view: Rendering) -> np.ndarray:
    """i16[H,W] into `COLOUR_LABELS`: the named colour of the object at each pixel."""
    names = [COLOUR_LABELS.index(thing.colour) for thing in room.objects]
    # Index -1 picks the last entry, which stands for the room itself.
    labels = np.array([*names, COLOUR_LABELS.index("background")], np.int16)[view.object_index]
    labels[view.kind_map == 0] = 0
    return labels
