"""A pinhole camera.

Camera axes: x right, y down, z forward. Pixel (u, v) has its centre at (u + 0.5, v + 0.5).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `focal` is in units of the image's shorter side."""

    cam_to_world: Float[np.ndarray, "4 4"]
    focal: float

    def intrinsics(self, width: int, height: int) -> Float[np.ndarray, "3 3"]:
        """K in pixels for an image of this size."""
        focal = self.focal * min(width, height)
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])

    def rays(
        self, width: int, height: int
    ) -> tuple[Float[np.ndarray, "R 3"], Float[np.ndarray, "R 3"]]:
        """Origins and directions in the world, float32; one unit along a ray is 1 m of depth."""
        intrinsics = self.intrinsics(width, height)
        u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        local = np.stack(
            [
                (u - width / 2) / intrinsics[0, 0],
                (v - height / 2) / intrinsics[1, 1],
                np.ones_like(u),
            ],
            axis=-1,
        ).reshape(-1, 3)
        directions = (local @ self.cam_to_world[:3, :3].T).astype(np.float32)
        origins = np.broadcast_to(self.cam_to_world[:3, 3].astype(np.float32), directions.shape)
        return np.ascontiguousarray(origins), directions


def look_at(
    position: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], focal: float
) -> Camera:
    """A level camera at `position` with `target` in the middle of its image; z is up."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return Camera(pose, focal)
