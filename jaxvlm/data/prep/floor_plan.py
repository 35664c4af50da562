"""The floor plan of a scene, for people to look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxvlm.data.boxes import Box
from jaxvlm.data.prep.looks import colour
from jaxvlm.data.top_view import Outline, Viewpoint, draw_top_view
from jaxvlm.render.camera import Camera

# Colour and width of the edge of each group, drawn in this order.
_GROUPS = {
    "plane": ("#888888", 2),
    "object": ("#222222", 1),
    "wall": ("#111111", 3),
    "opening": ("#bbbbbb", 5),
    "window": ("#3a8fd9", 5),
    "door": ("#a0642c", 5),
}


def floor_plan(
    boxes: Sequence[Box], cameras: Sequence[Camera] = (), size: tuple[int, int] = (900, 900)
) -> Image.Image:
    """Draws walls, doors, windows, openings and objects from above, with the cameras."""
    outlines = []
    for group, (edge, width) in _GROUPS.items():
        for box in boxes:
            if box.group != group:
                continue
            if group == "object":
                red, green, blue = (int(160 + 90 * channel) for channel in colour(box.category))
                fill = f"#{red:02x}{green:02x}{blue:02x}"
                front = box.centre[:2] + box.axes[2, :2] * box.size[2] / 2
                outlines.append(Outline(box.footprint(), box.category, edge, width, fill, front))
            else:
                name = box.category if group == "plane" else ""
                outlines.append(Outline(box.footprint(), name, edge, width))
    viewpoints = [
        Viewpoint(
            camera.cam_to_world[:2, 3],
            camera.cam_to_world[:2, 2],
            float(np.arctan(0.5 / camera.focal)),
        )
        for camera in cameras
    ]
    return draw_top_view(outlines, viewpoints, size)
