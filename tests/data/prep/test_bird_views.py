"""Bird's-eye images of a ScanNet mesh: ceilings are looked through, north is up."""

import numpy as np
import pytest
import trimesh
from PIL import Image
from scans import run_script

from jaxvlm.errors import UserError
from jaxvlm.render.shapes import box

SCENE = "scene0000_00"


def write_scene(root, scene=SCENE, alignment=None, colours=True):
    """A grey floor with a red thing in its north-east and a white ceiling over all of it."""
    parts = [
        box((0.5, 0.5, 0.5), (-2, 2), (-2, 2), (-0.1, 0)),
        box((0.9, 0.1, 0.1), (1, 1.6), (1, 1.6), (0, 1)),
    ]
    corners = np.concatenate([part.corners for part in parts])
    rgb = np.repeat([part.rgb for part in parts], [len(p.corners) for p in parts], axis=0)
    # A ceiling faces down, to where the scanner was.
    a, b, c, d = (np.array([x, y, 2.5]) for x, y in ((-2, -2), (-2, 2), (2, 2), (2, -2)))
    corners = np.concatenate([corners, [[a, b, c], [a, c, d]]])
    rgb = np.concatenate([rgb, np.ones((2, 3))])
    if alignment is not None:
        corners = (corners - alignment[:3, 3]) @ alignment[:3, :3]
    paint = {"vertex_colors": np.repeat((rgb * 255).astype(np.uint8), 3, axis=0)} if colours else {}
    faces = np.arange(3 * len(corners)).reshape(-1, 3)
    mesh = trimesh.Trimesh(corners.reshape(-1, 3), faces, process=False, **paint)
    folder = root / scene
    folder.mkdir(parents=True)
    mesh.export(folder / f"{scene}_vh_clean_2.ply")
    if alignment is not None:
        numbers = " ".join(map(str, alignment.ravel()))
        (folder / f"{scene}.txt").write_text(f"axisAlignment = {numbers}\n")


def draw(root, output, *flags):
    arguments = ("--scan-root", root, "--output-dir", output, "--workers", 1)
    run_script("render_bird_views", *arguments, "--image-size", 100, *flags)
    return np.asarray(Image.open(output / f"{SCENE}_bird.png")).astype(int)


@pytest.mark.parametrize("level", [False, True])
def test_what_stands_in_the_north_east_is_there_and_no_ceiling_hides_it(tmp_path, level):
    alignment = None
    if level:
        alignment = np.eye(4)
        alignment[:2, :2] = [[0, -1], [1, 0]]
        alignment[:3, 3] = (3, 4, 0)
    write_scene(tmp_path / "scans", alignment=alignment)
    image = draw(tmp_path, tmp_path / "birds")
    red = (image[..., 0] > 200) & (image[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert red.sum() > 50
    assert rows.mean() < 35 and columns.mean() > 65
    grey = np.abs(image - 128).max(-1) < 3
    assert grey.mean() > 0.4
    assert (image[:3] == 255).all()


def test_images_that_exist_are_kept(tmp_path, capsys):
    write_scene(tmp_path / "scans")
    draw(tmp_path / "scans", tmp_path / "birds")
    path = tmp_path / "birds" / f"{SCENE}_bird.png"
    Image.new("RGB", (5, 5)).save(path)
    assert draw(tmp_path / "scans", tmp_path / "birds").shape == (5, 5, 3)
    assert "0 images drawn, 1 were there" in capsys.readouterr().out
    assert draw(tmp_path / "scans", tmp_path / "birds", "--overwrite").shape == (100, 100, 3)


def test_broken_meshes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no <scene>/<scene>_vh_clean_2\.ply"):
        draw(tmp_path, tmp_path / "birds")
    write_scene(tmp_path / "scans")
    with pytest.raises(UserError, match=r"has no mesh of scene0009_00"):
        draw(tmp_path / "scans", tmp_path / "birds", "--scenes", "scene0009_00")
    path = tmp_path / "scans" / SCENE / f"{SCENE}_vh_clean_2.ply"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=rf"the mesh .*{SCENE}_vh_clean_2\.ply cannot be read"):
        draw(tmp_path / "scans", tmp_path / "birds")
    assert not list((tmp_path / "birds").iterdir())
    write_scene(tmp_path / "grey", colours=False)
    with pytest.raises(UserError, match=r"has no colours"):
        draw(tmp_path / "grey", tmp_path / "birds")
