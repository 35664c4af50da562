"""Which frames of a scan are shown: those that together look at most of the room.

A video has thousands of frames and neighbours are nearly the same. From poses alone, `coverage`
asks how much of the space in front of the cameras a frame adds to the frames chosen before it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxvlm.errors import UserError

METHODS = ("coverage", "uniform", "random")
# Candidates of a scan at most, evenly taken; more cost time and hardly cover more.
MOST_CANDIDATES = 400
# Metres in front of a camera; side of a cell of space; sectors of the compass from which it may be
# looked at, for from another side it shows something else.
_DEPTHS = np.arange(1.0, 3.6, 0.5)
_CELL = 0.5
_SECTORS = 8
# Points across and down an image.
_GRID = (8, 6)
# The room is taken to end so far beyond the cameras to the sides, below and above: what lies
# outside counts for nothing, or frames that look at a wall from close by would seem to see most.
_AROUND, _BELOW, _ABOVE = 1.0, 1.6, 1.2


def thinned(frames: Sequence, most: int = MOST_CANDIDATES) -> list:
    """At most so many of the frames, evenly taken, in order."""
    if len(frames) <= most:
        return list(frames)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, most).round().astype(int)]


def choose_views(
    rotations: Float[np.ndarray, "N 3 3"],
    positions: Float[np.ndarray, "N 3"],
    fields: Float[np.ndarray, "N 2"],
    count: int,
    method: str,
    rng: np.random.Generator,
) -> list[int]:
    """Indices of the chosen frames.

    By coverage the most telling comes first, so that fewer views are a prefix; otherwise they
    stand in the scan's order.

    Args:
      rotations: camera-to-world, camera axes x right, y down, z forward; z is up in the world.
      positions: metres.
      fields: half the image's width and height over the focal length (tangents).
      count: frames wanted; all are taken where there are no more.
      method: "coverage"; "uniform", evenly over the scan; "random".
      rng: for "random".
    """
    if method not in METHODS:
        raise UserError(f"--views {method}: expected one of {', '.join(METHODS)}")
    total = len(positions)
    count = min(count, total)
    if method == "uniform":
        return np.linspace(0, total - 1, count).round().astype(int).tolist()
    if method == "random":
        return sorted(rng.choice(total, count, replace=False).tolist())
    poses = np.concatenate([positions, rotations[:, :, 2]], axis=1)
    return _greedy(_cells(rotations, positions, fields), poses, count)


def _cells(
    rotations: Float[np.ndarray, "N 3 3"],
    positions: Float[np.ndarray, "N 3"],
    fields: Float[np.ndarray, "N 2"],
) -> list[np.ndarray]:
    """What each frame looks at: distinct numbers of (cell of space, sector it is seen from)."""
    across, down, ahead = np.meshgrid(
        np.linspace(-0.9, 0.9, _GRID[0]), np.linspace(-0.9, 0.9, _GRID[1]), _DEPTHS
    )
    grid = np.stack([across * ahead, down * ahead, ahead], -1).reshape(-1, 3)
    scale = np.concatenate([fields, np.ones((len(fields), 1))], 1)
    rays = np.einsum("nij,nkj->nki", rotations, grid * scale[:, None])
    points = rays + positions[:, None]
    low, high = positions.min(0) - _AROUND, positions.max(0) + _AROUND
    eyes = positions[:, 2].mean()
    low[2], high[2] = eyes - _BELOW, eyes + _ABOVE
    inside = ((points >= low) & (points <= high)).all(-1)
    turn = np.arctan2(rays[..., 1], rays[..., 0]) / (2 * np.pi) % 1
    sector = (turn * _SECTORS).astype(np.int64) % _SECTORS
    keys = np.concatenate([np.floor(points / _CELL).astype(np.int64), sector[..., None]], -1)
    keys -= keys.min((0, 1))
    numbers = np.ravel_multi_index(tuple(np.moveaxis(keys, -1, 0)), tuple(keys.max((0, 1)) + 1))
    return [np.unique(row[there]) for row, there in zip(numbers, inside, strict=True)]


def _greedy(cells: list[np.ndarray], poses: Float[np.ndarray, "N 6"], count: int) -> list[int]:
    """Each time the frame that adds most; among equals, the one furthest off the chosen.

    Args:
      cells: what each frame looks at.
      poses: position and forward direction of each frame.
      count: frames wanted.
    """
    names, numbers = np.unique(np.concatenate(cells), return_inverse=True)
    frames = np.split(numbers, np.cumsum([len(c) for c in cells])[:-1])
    fresh = np.ones(len(names), bool)
    # Less than a cell's worth, so that it decides between equals only.
    apart = np.full(len(poses), 0.5)
    chosen: list[int] = []
    for _ in range(count):
        gains = apart + [np.count_nonzero(fresh[frame]) for frame in frames]
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
        fresh[frames[chosen[-1]]] = False
        apart = np.minimum(apart, np.linalg.norm(poses - poses[chosen[-1]], axis=1))
    return chosen
