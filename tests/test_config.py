"""Configurations: files, overrides, checks, and no field that nothing reads."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from ml_collections import ConfigDict

import jaxvlm
from jaxvlm.config import default, load, to_json
from jaxvlm.config_checks import check
from jaxvlm.errors import UserError

PACKAGE = Path(jaxvlm.__path__[0])
CONFIGS = sorted((PACKAGE.parent / "configs").glob("*.py"))
FILE = """
from jaxvlm.config import default

def get_config(argument):
    config = default()
    {body}
    return config
"""


@pytest.fixture
def file(tmp_path):
    """Writes a configuration file that changes the defaults by some lines."""

    def write(body: str = "pass", text: str = FILE) -> str:
        path = tmp_path / "mine.py"
        path.write_text(text.format(body=body.replace("\n", "\n    ")))
        return str(path)

    return write


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_overrides_are_read_as_their_fields_types(file):
    overrides = [
        "seed=3",
        "optimizer.gradient_clip=2",
        "optimizer.eps=1e-6",
        "data.blind=true",
        "model.language.weights=None",
        "model.vision.weights=runs/vggt",
        "data.image_roots=['a', 'b']",
        "data.train=runs/rooms-1.jsonl",
        "data.val=({'path': 'a.jsonl', 'weight': 2.0},)",
    ]
    config = load(file(), overrides)
    assert config.seed == 3 and config.data.blind is True
    assert config.optimizer.gradient_clip == 2.0
    assert isinstance(config.optimizer.gradient_clip, float)
    assert config.optimizer.eps == 1e-6
    assert config.model.language.weights is None and config.model.vision.weights == "runs/vggt"
    assert config.data.image_roots == ("a", "b")
    assert config.data.train == ({"path": "runs/rooms-1.jsonl", "weight": 1.0},)
    assert config.data.val[0]["weight"] == 2.0
    assert load(file(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=3", "unknown configuration field 'sead': did you mean 'seed'"),
        ("data.num_view=3", "'data.num_view': did you mean 'num_views'"),
        ("data.xyz=3", "'data.xyz': known are augment, "),
        ("dta.num_views=3", "'dta': did you mean 'data'"),
        ("seed.more=3", "'seed' has no fields"),
        ("data=3", "data is a group of fields"),
        ("seed", "must have the form --config.field=value"),
        ("seed=1.5", "'seed' expects int"),
        ("seed=True", "'seed' expects int"),
        ("seed=None", "'seed' expects int"),
        ("data.blind=1", "'data.blind' expects bool"),
        ("optimizer.b1=True", "'optimizer.b1' expects float"),
        ("optimizer.b1=high", "'optimizer.b1' expects float"),
        ("text.tokenizer=5", "'text.tokenizer' expects str"),
        ("model.vision.weights=5", "'model.vision.weights' expects text or None"),
        ("data.image_roots=data", "'data.image_roots' expects tuple"),
    ],
)
def test_wrong_overrides_are_named(file, override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(file(), [override])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_any_override_is_taken_or_refused(text):
    try:
        config = load(str(PACKAGE.parent / "configs" / "demo.py"), [f"seed={text}"])
    except UserError as error:
        assert "'seed' expects int" in str(error)
    else:
        assert isinstance(config.seed, int)


def test_the_argument_reaches_the_file(file):
    path = file("config.seed = int(argument or 7)")
    assert load(path).seed == 7 and load(path + ":12").seed == 12
    with pytest.raises(UserError, match=r"mine\.py: ValueError: invalid literal"):
        load(path + ":x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(", r"mine\.py: SyntaxError: .*line 1"),
        ("import nowhere_at_all", r"mine\.py: ModuleNotFoundError: .*nowhere_at_all"),
        ("x = 1", r"mine\.py: AttributeError: .*get_config"),
        ("def get_config(argument): pass", "get_config must return a configuration, found None"),
        ("def get_config(argument): return {{}}", "must return a configuration, found {}"),
    ],
)
def test_broken_files_are_named(file, text, message):
    with pytest.raises(UserError, match=message):
        load(file(text=text))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("config.data.num_view = 3", r"mine\.py: .*num_view.*num_views"),
        ("config.sead = 3", r"mine\.py: .*sead.*seed"),
        ("config.seed = 'three'", r"mine\.py: TypeError"),
    ],
)
def test_files_cannot_set_what_does_not_exist(file, body, message):
    with pytest.raises(UserError, match=message):
        load(file(body))


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"'nowhere\.py' does not exist"):
        load("nowhere.py")
    for name, text, message in (
        ("a.txt", "", r"must be a \.py file"),
        ("a.json", '{\n"seed": }', r"a\.json:2: malformed JSON"),
        ("b.json", "[]", r"b\.json: expected a JSON object"),
        ("c.json", '{"seed": "x"}', "'seed' expects int"),
        ("d.json", '{"seeed": 1}', "did you mean 'seed'"),
        ("f.json", f'{{"seed": 1{"0" * 400}}}', "'seed' is too large: 1000"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            load(str(tmp_path / name))
    (tmp_path / "e.json").write_bytes(b'{"seed": "\xe9"}')
    with pytest.raises(UserError, match=r"e\.json is not UTF-8"):
        load(str(tmp_path / "e.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_runs_stored_configuration_is_read_back(path, tmp_path):
    config = load(str(path))
    check(config)
    (tmp_path / "config.json").write_text(to_json(config))
    stored = load(str(tmp_path / "config.json"))
    assert stored.to_dict() == config.to_dict()
    assert load(str(tmp_path / "config.json"), ["seed=9"]).seed == 9


def test_a_file_may_add_a_parameter_group(file, tmp_path):
    body = "with config.optimizer.learning_rate.unlocked() as rates:\n    rates.vision = 1e-5"
    config = load(file(body))
    (tmp_path / "config.json").write_text(to_json(config))
    assert load(str(tmp_path / "config.json")).optimizer.learning_rate.vision == 1e-5


def test_defaults_are_possible_and_their_own():
    check(default())
    one = default()
    one.seed = 5
    assert default().seed == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1: expected at least 0"),
        ("model.vision.patch_size=0", "patch_size=0: expected at least 1"),
        ("text.max_length=7", "text.max_length=7"),
        ("data.image_size=13", "data.image_size=13"),
        ("data.image_size=450", "no multiple of model.vision.patch_size=14"),
        ("data.image_height=333", "no multiple of model.vision.patch_size=14"),
        ("data.image_height=-14", "data.image_height=-14: expected at least 0"),
        ("data.resize=stretch", "data.resize='stretch': expected one of"),
        ("data.augment.color_jitter=1.5", "data.augment.color_jitter=1.5: expected a fraction"),
        ("data.augment.random_crop=1", "random_crop=1.0: expected at least 0 and less than 1"),
        ("data.features.variants=0", "data.features.variants=0: expected at least 1"),
        ("data.features.dtype=float16", "data.features.dtype='float16': expected one of"),
        ("data.num_views=0", "data.num_views=0"),
        ("data.row_length=7", "data.row_length=7: expected at least 8"),
        ("data.row_length=1048577", "data.row_length=1048577: expected at most 1048576"),
        ("evaluation.max_new_tokens=1048577", "max_new_tokens=1048577: expected at most 1048576"),
        ("data.row_length=511", "data.row_length=511 is shorter than text.max_length=512"),
        ("data.row_sets=0", "data.row_sets=0"),
        (
            "data.row_views=7",
            "a row holds a whole image set, so expected at least 8",
        ),
        ("data.row_views=-1", "data.row_views=-1: expected at least 0"),
        ("data.row_labels=0", "data.row_labels=0"),
        ("data.questions_per_set=0", "data.questions_per_set=0"),
        ("data.num_workers=-1", "data.num_workers=-1"),
        ("data.image_roots=(1,)", "data.image_roots=(1,): expected names of folders"),
        ("data.view_dropout=-0.1", "data.view_dropout=-0.1: expected a fraction"),
        ("data.view_dropout=1.5", "data.view_dropout=1.5: expected a fraction"),
        ("data.view_dropout=1", "data.view_dropout=1 would leave out every view"),
        ("data.on_bad_record=ignore", "data.on_bad_record='ignore': expected one of"),
        ("text.template=qwen", "text.template='qwen': expected one of"),
        ("precision=float16", "precision='float16': expected one of"),
        ("model.geometry.mode=all", "model.geometry.mode='all': expected one of"),
        ("train.remat=some", "train.remat='some': expected one of"),
        ("train.max_steps=0", "train.max_steps=0"),
        ("train.rows_per_device=0", "train.rows_per_device=0"),
        ("train.accumulation=0", "train.accumulation=0"),
        ("train.log_every=0", "train.log_every=0"),
        ("train.save_every=0", "train.save_every=0"),
        ("train.keep=0", "train.keep=0"),
        ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens=0"),
        ("evaluation.batch_sets=0", "evaluation.batch_sets=0"),
        ("evaluation.batch_questions=0", "evaluation.batch_questions=0"),
        ("optimizer.gradient_clip=0", "optimizer.gradient_clip=0"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1"),
        ("optimizer.warmup_ratio=1.1", "optimizer.warmup_ratio=1.1: expected a fraction"),
        ("optimizer.decay_ratio=2", "optimizer.decay_ratio=2.0: expected a fraction"),
        ("optimizer.final_ratio=-1", "optimizer.final_ratio=-1.0: expected a fraction"),
        ("optimizer.b1=1", "optimizer.b1=1.0: expected at least 0 and less than 1"),
        ("optimizer.b2=-0.5", "optimizer.b2=-0.5: expected at least 0"),
        ("optimizer.eps=0", "optimizer.eps=0"),
        ("optimizer.learning_rate.language=1e999", "learning_rate.language=inf"),
        ("optimizer.learning_rate.projector=-1e-4", "optimizer.learning_rate.projector=-0.0001"),
    ],
)
def test_impossible_values_are_named(file, override, message):
    config = load(file(), [override])
    with pytest.raises(UserError, match=re.escape(message)):
        check(config)


def read_names(source: str) -> set[str]:
    """Names that a file reads: attributes, and texts that may be a key (docstrings are not)."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


@pytest.fixture(scope="module")
def names_read() -> set[str]:
    # Defining a field or checking its value is no use of it.
    own = {PACKAGE / "config.py", PACKAGE / "config_checks.py"}
    files = [path for path in PACKAGE.rglob("*.py") if path not in own]
    return set().union(*(read_names(path.read_text(encoding="utf-8")) for path in files))


@pytest.mark.parametrize("field", list(leaves(default())))
def test_every_field_is_read_somewhere(field, names_read):
    assert field.split(".")[-1] in names_read, f"nothing reads the configuration's {field}"


def test_reading_is_told_from_writing_and_describing():
    source = '"""Sets train.patience."""\nconfig.patience = 3\nx = config.seed + config["keep"]'
    assert {"seed", "keep"} <= read_names(source)
    assert "patience" not in read_names(source)
