r"""Draws the bird's-eye image of each ScanNet scene from its coloured mesh.

    python scripts/prep/render_bird_views.py --scan-root data/raw/scannet \
        --output-dir data/processed/SQA3D/bird

Reads <scene>/<scene>_vh_clean_2.ply and, where it is there, <scene>/<scene>.txt (axisAlignment).
Images that exist are kept, so the same command goes on where it was stopped.
"""

import argparse
from pathlib import Path

from jaxvlm import entry
from jaxvlm.console import progress
from jaxvlm.data.prep.bird_render import find_meshes, write_bird_view
from jaxvlm.data.prep.flags import add_work, script
from jaxvlm.data.prep.workers import made_of
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Finds the meshes, draws what is missing."""
    if not 32 <= flags.image_size <= 8192:
        raise UserError(f"--image-size {flags.image_size}: expected 32 to 8192 pixels")
    if flags.workers < 1:
        raise UserError(f"--workers {flags.workers}: expected at least 1")
    meshes = find_meshes(flags.scan_root)
    unknown = sorted(set(flags.scenes or ()) - meshes.keys())
    if unknown:
        raise UserError(f"--scenes: {flags.scan_root} has no mesh of {', '.join(unknown[:5])}")
    wanted = sorted(set(flags.scenes or meshes))
    try:
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir {flags.output_dir} cannot be written: {error}") from None
    tasks = [
        (scene, meshes[scene], flags.output_dir, flags.image_size)
        for scene in wanted
        if flags.overwrite or not (flags.output_dir / f"{scene}_bird.png").is_file()
    ]
    kept = len(wanted) - len(tasks)
    with progress("scenes", len(wanted), kept) as advance:
        for _ in made_of(write_bird_view, tasks, flags.workers):
            advance()
    print(f"{flags.output_dir}: {len(tasks):,} images drawn, {kept:,} were there")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = script("render_bird_views.py", __doc__)
    flags.add_argument("--scan-root", required=True, type=Path, help="ScanNet, a folder a scene")
    flags.add_argument("--output-dir", type=Path, default=Path("data/processed/SQA3D/bird"))
    flags.add_argument("--scenes", nargs="+", help="only these (default: all that have a mesh)")
    flags.add_argument(
        "--image-size", type=int, default=1024, help="side in pixels (default: 1024)"
    )
    add_work(flags, "replace images that exist")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
