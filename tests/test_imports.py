"""Who may import whom: the floors of the house, and what loads without jax and torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxvlm

PACKAGE = Path(jaxvlm.__path__[0])
ROOT = PACKAGE.parent
FILES = sorted(path for folder in ("jaxvlm", "convert") for path in (ROOT / folder).rglob("*.py"))
BASE = {"config", "config_checks", "workdir", "entry"}
# Each room and what it may import; every room may use what stands in it and the common files.
FLOORS = {
    "render": set(),
    "data": {"render", "entry", "config", "config_checks"},
    "rooms": {"entry", "data", "render"},
    "metrics": {"data"},
    "models": set(),
    "training": {"models", "data", "rooms", *BASE},
    "generation": {"training", "models", "metrics", "data", *BASE},
    "planning": {"training", "models", "data", *BASE},
    "monitoring": set(),
}
JAX_FREE = ("render", "data", "metrics", "rooms", "monitoring")
COMMON = {"console", "errors", "files", "paths", "shares"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything a file imports, at its top or later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room(path: Path) -> str:
    """The folder of the package that a file stands in, or its own name; empty outside."""
    inside = path.is_relative_to(PACKAGE)
    return path.relative_to(PACKAGE).with_suffix("").parts[0] if inside else ""


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def without_main(tree: ast.Module) -> ast.Module:
    """The file without what runs only as a program."""
    body = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.dump(n.test))]
    return ast.Module(body, [])


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_room_imports_from_below(path):
    tree = parsed(path)
    inside = [name.split(".")[1] for name in imports(tree) if name.startswith("jaxvlm.")]
    if named(path).startswith("convert/"):
        assert set(inside) <= {"models", "training", "data", "entry", "config", *COMMON}
        return
    assert not any(name.split(".")[0] in ("convert", "tests") for name in imports(tree))
    if room(path) in FLOORS:
        if named(path) == "jaxvlm/rooms/pretrain.py":
            # The command stands with the rooms, its work with the other training code.
            inside = [n.split(".")[1] for n in imports(without_main(tree)) if "jaxvlm." in n]
        assert set(inside) <= {room(path), *FLOORS[room(path)], *COMMON}
    elif room(path) in COMMON or room(path) in BASE:
        assert set(inside) <= COMMON


@pytest.mark.parametrize("path", [p for p in FILES if named(p).startswith("jaxvlm/")], ids=named)
def test_heavy_packages_stay_where_they_belong(path):
    top = {name.split(".")[0] for name in imports(parsed(path))}
    assert "torch" not in top
    if room(path) in JAX_FREE:
        assert not top & {"jax", "jaxlib", "flax", "optax", "orbax"}
    if named(path) != "jaxvlm/data/pipeline.py":
        assert "grain" not in top


@pytest.mark.parametrize(
    "folder", ["jaxvlm", "jaxvlm/data", "jaxvlm/metrics", "jaxvlm/rooms", "jaxvlm/render"]
)
def test_importing_a_package_does_nothing(folder):
    assert (ROOT / folder / "__init__.py").read_text().strip() == ""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_records_rooms_and_metrics_load_without_jax():
    # `__main__` files run on import only as programs; pipeline is Grain's, Grain imports jax.
    modules = [
        named(path).removesuffix(".py").replace("/", ".")
        for path in FILES
        if room(path) in JAX_FREE
        and path.name != "__init__.py"
        and named(path) != "jaxvlm/data/pipeline.py"
    ]
    assert {"jaxvlm.data.records", "jaxvlm.data.rows", "jaxvlm.metrics.report"} <= set(modules)
    run(
        f"import importlib, sys\nfor name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = {'jax', 'torch', 'grain'} & set(sys.modules)\n"
        "    assert not loaded, f'{name} loads {loaded}'"
    )


def test_a_sample_is_built_where_torch_cannot_be_imported(tmp_path):
    run(
        f"""
import sys
sys.modules["torch"] = None
from PIL import Image
from jaxvlm.data.packing import Capacity, Group
from jaxvlm.data.record import parse_record
from jaxvlm.data.framing import Framing
from jaxvlm.data.readers import ImageReader
from jaxvlm.data.rows import RowBuilder, VisualLayout
from jaxvlm.data.sequence import tokenize
from jaxvlm.data.tokenizer import load_tokenizer

path = {str(tmp_path / "a.png")!r}
Image.new("RGB", (20, 20)).save(path)
tokenizer = load_tokenizer("jaxvlm:rooms")
records = [parse_record({{"images": [path], "question": "Where?", "answer": "left"}}, "o")]
samples, _ = tokenize(records, tokenizer, "plain", 60, 4)
build = RowBuilder(records, samples, Capacity(60, 1, 1, 10, 1), VisualLayout("none", 0, 4),
                   ImageReader(framing=Framing(14, 14), views=1), tokenizer.placeholder_id,
                   tokenizer.pad_id, [0])
row = build.batch([[Group((0,), (0,))]])
assert tokenizer.decode(row["labels"][row["label_weights"] > 0]) == "left"
"""
    )


_LOADED = """
import jaxvlm.training.loop, jaxvlm.generation.restore, jaxvlm.generation.answer
import jaxvlm.train, jaxvlm.evaluate, jaxvlm.ask
"""


def test_training_and_answering_load_where_torch_cannot_be_imported():
    run(f"import sys; sys.modules['torch'] = None\n{_LOADED}")


def test_training_and_answering_do_not_load_torch_where_it_is_installed():
    pytest.importorskip("torch")
    # Whoever wants it afterwards gets it.
    run(f"import sys\n{_LOADED}assert 'torch' not in sys.modules\nimport torch")
