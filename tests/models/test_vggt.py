"""VGGT against the official implementation's outputs, sizes and names.

Axes: B batch, V views, H W pixels, P tokens a view, C width.
"""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from convert import table
from convert import vggt as names
from jaxvlm.errors import UserError
from jaxvlm.models import tree
from jaxvlm.models.vggt.config import HEADS, DPTConfig, VGGTConfig
from jaxvlm.models.vggt.model import VGGT
from jaxvlm.models.vggt.seats import seats
from jaxvlm.models.vggt.vit import interpolate_positions

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
FULL = VGGTConfig(heads=HEADS)
VIT = VGGTConfig(
    img_size=56,
    embed_dim=32,
    depth=4,
    num_heads=2,
    vit_depth=2,
    vit_heads=4,
    heads=HEADS,
    camera_trunk_depth=2,
    camera_heads=4,
    depth_head=DPTConfig(16, (8, 12, 16, 16), (0, 1, 2, 3)),
    point_head=DPTConfig(8, (8, 8, 8, 8), (0, 1, 2, 3)),
)
CONV = VGGTConfig(img_size=56, embed_dim=32, depth=2, num_heads=2, patch_embed="conv")
HEAD = DPTConfig(8, (8, 8, 8, 8), (0, 0, 1, 1))
SHALLOW = dataclasses.replace(
    VIT, depth=2, heads=("camera", "point"), point_head=HEAD, init_values=0.5
)
CONFIGS = {"vggt_tiny": VIT, "vggt_tiny_conv": CONV}
CASES = [
    ("vggt_tiny", "sq"),
    ("vggt_tiny", "nonsq"),
    ("vggt_tiny", "down"),
    ("vggt_tiny", "samecount"),
    ("vggt_tiny_conv", "sq"),
    ("vggt_tiny_conv", "nonsq"),
]


@pytest.fixture(autouse=True, scope="module")
def exact_products_and_quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.default_matmul_precision("highest"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def fixture(name: str) -> dict[str, np.ndarray]:
    return load_file(FIXTURES / f"{name}.safetensors")


def state_dict(name: str) -> dict[str, np.ndarray]:
    prefix = "params/"
    return {k.removeprefix(prefix): v for k, v in fixture(name).items() if k.startswith(prefix)}


@functools.cache
def abstract(config: VGGTConfig) -> VGGT:
    return nnx.eval_shape(lambda: VGGT(config, rngs=nnx.Rngs(0)))


@functools.cache
def imported(name: str) -> VGGT:
    config = CONFIGS[name]
    shapes = tree.pure(abstract(config))
    params = table.to_jax(names.rules(config), state_dict(name), shapes, names.ignored(config))
    return tree.load(abstract(config), jax.tree.map(jnp.asarray, params))


def images_of(name: str, case: str) -> np.ndarray:
    return fixture(name)[f"{case}/images"].transpose(0, 1, 3, 4, 2)


def aggregated(aggregator, images) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Patch tokens and every layer's tokens."""
    layers = aggregator(images, layers=range(aggregator.config.depth))
    return aggregator.patch_tokens(images), layers


@jax.jit
def predict(model: VGGT, images):
    """The same, and all predictions."""
    return *aggregated(model.aggregator, images), model(images)


def named(patches, layers) -> dict[str, np.ndarray]:
    """An aggregator's outputs under the fixture's names."""
    found = {"patch_tokens": patches}
    return found | {f"aggregated_tokens_{i:02}": x for i, x in enumerate(layers)}


def outputs(model: VGGT, name: str, case: str) -> dict[str, np.ndarray]:
    """Our predictions under the fixture's names."""
    patches, layers, out = predict(model, images_of(name, case))
    found = named(patches, layers)
    for i, pose in enumerate(out.get("poses", ())):
        found |= {f"pose_enc_iter_{i:02}": pose, "pose_enc": pose}
    renamed = {
        "depth": "depth",
        "depth_confidence": "depth_conf",
        "points": "world_points",
        "points_confidence": "world_points_conf",
    }
    found |= {theirs: out[ours] for ours, theirs in renamed.items() if ours in out}
    np.testing.assert_array_equal(out["tokens"], layers[-1])
    return {key: np.asarray(value) for key, value in found.items()}


def check(found: np.ndarray, wanted: np.ndarray, key: str):
    assert found.shape == wanted.shape, key
    scale = np.abs(wanted).max()
    tolerance = {"world_points": 1e-5 * scale, "world_points_conf": 1e-5 * scale}.get(key, 5e-5)
    assert np.abs(found - wanted).max() <= tolerance, (key, np.abs(found - wanted).max())


def official(name: str, case: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(f"{case}/"): value
        for key, value in fixture(name).items()
        if key.startswith(f"{case}/") and not key.endswith("/images")
    }


@pytest.mark.parametrize(("name", "case"), CASES)
def test_outputs_equal_the_official_ones(name, case):
    found, wanted = outputs(imported(name), name, case), official(name, case)
    assert set(wanted) <= set(found)
    assert len(wanted) >= (3 if name == "vggt_tiny_conv" else 12)
    for key, value in wanted.items():
        check(found[key], value, key)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_outputs_of_cut_layers_equal_the_official_ones(name, case):
    aggregator = nnx.clone(imported(name).aggregator)
    aggregator.cut_layers()
    layers, width = aggregator.global_blocks, aggregator.config.embed_dim
    # Of their own, as [out, in].
    assert layers[0].mlp.fc1.kernel.shape == (4 * width, width)
    found = named(*jax.jit(aggregated)(aggregator, images_of(name, case)))
    assert set(found) <= set(official(name, case)) and len(found) == 1 + len(layers)
    for key, value in found.items():
        check(np.asarray(value), official(name, case)[key], key)


def test_heads_alone_equal_the_official_ones():
    data, model = fixture("vggt_tiny"), imported("vggt_tiny")
    tokens = [jnp.asarray(data[f"headonly/tokens_{i:02}"]) for i in range(4)]
    call = jax.jit(lambda m, x: (m.camera_head(x[-1])[-1], m.depth_head(x, (28, 28))))
    pose, (depth, confidence) = call(model, tokens)
    check(pose, data["headonly/pose_enc"], "pose_enc")
    check(depth, data["headonly/depth"], "depth")
    check(confidence, data["headonly/depth_conf"], "depth_conf")


@pytest.mark.parametrize("size", [(518, 392), (294, 518), (280, 518), (532, 532)])
def test_interpolated_positions_equal_the_official_ones(size):
    data = fixture("vggt_tiny")
    found = interpolate_positions(jnp.asarray(data["pos_interp/pos_embed"]), *size, 14)
    wanted = data[f"pos_interp/{size[0]}x{size[1]}"]
    np.testing.assert_allclose(found, wanted, atol=5e-6, rtol=0)


def test_positions_of_the_learnt_square_are_returned_as_they_are():
    learnt = jnp.asarray(fixture("vggt_tiny")["pos_interp/pos_embed"])
    assert interpolate_positions(learnt, 518, 518, 14) is learnt


def count(params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def test_full_size_counts_and_shapes():
    params = tree.pure(abstract(FULL))
    aggregator = params["aggregator"]
    assert {name: count(part) for name, part in params.items()} == {
        "aggregator": 909_112_320,
        "camera_head": 216_174_610,
        "point_head": 32_654_628,
        "depth_head": 32_654_562,
    }
    assert count(aggregator["patch_embed"]) == 304_372_736
    assert count(aggregator["frame_blocks"]) == count(aggregator["global_blocks"]) == 302_364_672
    assert aggregator["frame_blocks"]["attn"]["qkv"]["kernel"].shape == (24, 1024, 3072)
    assert count(tree.pure(abstract(VGGTConfig()))) == 909_112_320
    images = jax.ShapeDtypeStruct((1, 2, 518, 392, 3), jnp.float32)
    out = jax.eval_shape(lambda model, images: model(images), abstract(FULL), images)
    per_view = FULL.tokens_per_view(518, 392)
    assert per_view == 5 + 37 * 28
    assert {name: x.shape for name, x in out.items()} == {
        "tokens": (1, 2, per_view, 2048),
        "poses": (4, 1, 2, 9),
        "depth": (1, 2, 518, 392, 1),
        "depth_confidence": (1, 2, 518, 392),
        "points": (1, 2, 518, 392, 3),
        "points_confidence": (1, 2, 518, 392),
    }


def test_every_official_key_has_its_place_at_full_size():
    tensors = json.loads((FIXTURES / "vggt_state_dict.json").read_text())["tensors"]
    rules = {rule.path: rule for rule in names.rules(FULL)}
    params = table.flatten(tree.pure(abstract(FULL)))
    assert set(rules) == set(params)
    used = []
    for path, leaf in params.items():
        rule = rules[path]
        keys = rule.keys(leaf.shape[0])
        used += keys
        for key in keys:
            tensor = np.broadcast_to(np.float32(0), tensors[key][0])
            assert rule.layout.to_jax(tensor).shape == leaf.shape[rule.stacked :], key
    left = set(tensors) - set(used)
    assert len(used) == len(set(used))
    assert left and all(key.startswith("track_head.") for key in left)
    assert all(any(re.fullmatch(p, key) for p in names.IGNORED) for key in left)
    assert not any(re.fullmatch(p, key) for p in names.IGNORED for key in used)


@pytest.mark.parametrize("name", CONFIGS)
def test_import_and_export_are_inverse_bit_by_bit(name):
    tensors = state_dict(name)
    exported = table.to_torch(names.rules(CONFIGS[name]), tree.pure(imported(name)))
    assert exported.keys() == tensors.keys()
    for key, value in tensors.items():
        assert exported[key].dtype == value.dtype
        np.testing.assert_array_equal(exported[key], value, err_msg=key)


def test_an_aggregator_alone_is_imported_from_a_full_state_dict():
    config = dataclasses.replace(VIT, heads=())
    tensors = state_dict("vggt_tiny")
    rules, shapes = names.rules(config), tree.pure(abstract(config))
    params = table.to_jax(rules, tensors, shapes, names.ignored(config))
    assert count(params) == 148_160
    with pytest.raises(UserError, match="camera_head"):
        table.to_jax(rules, tensors, shapes, names.IGNORED)


def test_padding_views_change_nothing_for_the_real_ones():
    model = imported("vggt_tiny")
    real = jnp.asarray(images_of("vggt_tiny", "nonsq"))
    noise = jax.random.uniform(jax.random.key(0), real.shape)
    images = jnp.concatenate([real.at[:, 2].set(noise[:, 2]), real])

    @jax.jit
    def call(model: VGGT, images, counts):
        tokens = model.aggregator(images, counts)
        return {"tokens": tokens, "poses": jnp.moveaxis(model.camera_head(tokens, counts), 0, 2)}

    two = call(model, images[:1, :2], None)
    padded, unmasked = call(model, images, jnp.array([2, 3])), call(model, images, None)
    for key in two:
        np.testing.assert_allclose(padded[key][:1, :2], two[key], atol=2e-5, err_msg=key)
        np.testing.assert_allclose(padded[key][1:], unmasked[key][1:], atol=2e-5, err_msg=key)
        assert np.abs(unmasked[key][:1, :2] - two[key]).max() > 1e-3
    # The camera head's own mask, on tokens that the aggregator's mask has no part in.
    head = jax.jit(lambda tokens, counts: model.camera_head(tokens, counts))
    poses = [head(unmasked["tokens"][:1], counts) for counts in (jnp.array([2]), None)]
    alone = head(unmasked["tokens"][:1, :2], None)
    np.testing.assert_allclose(poses[0][:, :, :2], alone, atol=2e-5)
    assert np.abs(poses[1][:, :, :2] - alone).max() > 1e-5


@pytest.mark.slow
def test_the_sets_of_a_row_are_seen_as_each_by_itself():
    """Views behind each other, empty sets and empty seats between them; and the same backwards."""
    aggregator = imported("vggt_tiny").aggregator
    counts = np.array([[1, 0, 3], [0, 1, 0], [3, 1, 1], [0, 0, 0]], np.int32)
    images = jax.random.uniform(jax.random.key(1), (4, 5, 28, 42, 3))
    weights = jax.random.normal(jax.random.key(2), (12, 3, 11, 64))

    @jax.jit
    def of_rows(aggregator, images):
        def total(aggregator, images):
            taken = seats(jnp.asarray(counts), 3, images.shape[1])
            found = taken.spread(aggregator(images, taken=taken))
            return (found * weights).sum(), found

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(aggregator, images)

    @jax.jit
    def of_set(aggregator, images, weights):
        def total(aggregator, images):
            found = aggregator(images[None])[0]
            return (found * weights).sum(), found

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(aggregator, images)

    (_, found), (gradients, of_images) = of_rows(aggregator, images)
    summed = jax.tree.map(np.zeros_like, gradients)
    for row, number in np.argwhere(counts > 0):
        count, first = counts[row, number], counts[row, :number].sum()
        shown, place = images[row, first : first + count], 3 * row + number
        (_, alone), (change, of_shown) = of_set(aggregator, shown, weights[place, :count])
        np.testing.assert_allclose(found[place, :count], alone, atol=2e-5)
        np.testing.assert_allclose(of_images[row, first : first + count], of_shown, atol=1e-4)
        summed = jax.tree.map(np.add, summed, change)
    for path, gradient in table.flatten(tree.pure(gradients)).items():
        expected = table.flatten(tree.pure(summed))[path]
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * scale, err_msg=path)
    empty = np.arange(5) >= counts.sum(axis=1)[:, None]
    assert empty.any() and not np.asarray(of_images)[empty].any()
    padding = np.arange(3) >= counts.reshape(-1, 1)
    assert not np.asarray(found)[padding].any()


def test_layers_come_in_the_asked_order():
    aggregator = imported("vggt_tiny").aggregator
    images = jnp.asarray(images_of("vggt_tiny", "down"))
    third, first, again = aggregator(images, layers=(2, 0, 2))
    check(third, fixture("vggt_tiny")["down/aggregated_tokens_02"], "tokens")
    check(first, fixture("vggt_tiny")["down/aggregated_tokens_00"], "tokens")
    np.testing.assert_array_equal(third, again)
    with pytest.raises(UserError, match=r"0\.\.3"):
        aggregator(images, layers=(4,))


@pytest.mark.parametrize("size", [(56, 57), (30, 56), (0, 56)])
def test_sides_must_be_multiples_of_the_patch_size(size):
    images = jax.ShapeDtypeStruct((1, 1, *size, 3), jnp.float32)
    with pytest.raises(UserError, match=rf"{size[0]} x {size[1]} .* of 14"):
        jax.eval_shape(lambda model, images: model.aggregator(images), abstract(VIT), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": ("track",)}, "heads names .'track'"),
        ({"patch_embed": "mlp"}, "patch_embed is 'mlp'"),
        ({"img_size": 57}, "img_size is 57, not a multiple of 14"),
        ({"num_heads": 5}, "embed_dim is 32, not a multiple of 5"),
        ({"num_heads": 16}, "num_heads is 2; .* multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(VIT, **change)


@pytest.mark.slow
def test_gradients_are_finite_and_reach_every_parameter():
    # This generator compiles faster than the default one.
    key = jax.random.key(0, impl="unsafe_rbg")
    model = jax.jit(lambda: VGGT(SHALLOW, rngs=nnx.Rngs(key)))()
    images = jax.random.uniform(jax.random.key(1), (1, 2, 28, 42, 3))

    @jax.jit
    @jax.grad
    def gradient(params):
        out = tree.load(abstract(SHALLOW), params)(images, jnp.array([2]))
        return sum(jnp.mean(jnp.sin(3 * x)) for x in out.values())

    grads = table.flatten(gradient(tree.pure(model)))
    assert all(np.isfinite(x).all() for x in grads.values())
    still = {path for path, x in grads.items() if not np.abs(x).max() > 0}
    assert still == {"aggregator/patch_embed/mask_token"}


@pytest.mark.slow
def test_remat_changes_the_memory_but_not_the_gradients():
    aggregator = imported("vggt_tiny_conv").aggregator
    images = jnp.asarray(images_of("vggt_tiny_conv", "nonsq"))

    def loss(aggregator, remat):
        return jnp.mean(aggregator(images, remat=remat) ** 2)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    kept, again = gradient(aggregator, False), gradient(aggregator, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), kept, again)
    with_vit = imported("vggt_tiny").aggregator
    for remat, count in ((True, 2), (False, 0)):
        jaxpr = jax.make_jaxpr(lambda a, remat=remat: loss(a, remat))(with_vit)
        assert str(jaxpr).count("policy=None") == count


def test_pose_iterations_are_detached_from_one_another():
    """Only the first iteration starts from the empty encoding; no later one reaches it."""
    head = imported("vggt_tiny").camera_head
    tokens = jnp.asarray(fixture("vggt_tiny")["headonly/tokens_03"])

    @jax.jit
    @jax.jacrev
    def gradient(empty):
        params = tree.pure(head) | {"empty_pose_tokens": empty}
        return jnp.sum(tree.load(head, params)(tokens)[..., :7], axis=(1, 2, 3))

    reach = np.abs(gradient(head.empty_pose_tokens[...])).max(axis=(1, 2, 3))
    assert reach[0] > 0
    np.testing.assert_array_equal(reach[1:], 0)


@pytest.mark.slow
def test_compute_follows_the_parameters_dtype():
    model = imported("vggt_tiny")
    images = jnp.asarray(images_of("vggt_tiny", "down"))
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    tokens, poses = jax.jit(lambda m, x: (y := m.aggregator(x), m.camera_head(y)))(halves, images)
    depth = jax.eval_shape(lambda m, x: m(x)["depth"], halves, images)
    wanted = fixture("vggt_tiny")["down/aggregated_tokens_03"]
    assert tokens.dtype == jnp.bfloat16
    assert poses.dtype == depth.dtype == jnp.float32
    error = np.abs(tokens.astype(jnp.float32) - wanted)
    assert 0 < error.mean() < 0.02


def test_a_tree_of_another_model_is_refused():
    params = tree.pure(imported("vggt_tiny_conv"))
    with pytest.raises(ValueError, match="paths, first aggregator/patch_embed"):
        tree.load(abstract(VIT), params)


@pytest.mark.parametrize(("views", "tera"), [(1, 2.18), (8, 23.25)])
def test_the_operations_of_the_released_model(views, tera):
    """Multiply-adds of its matrix products, counted by hand: 0.73 a block stack at one view."""
    assert sum(VGGTConfig().flops(views, 448, 448)) / 1e12 == pytest.approx(tera, rel=2e-3)


def test_operations_of_a_small_model_are_those_of_the_compiler():
    config = VGGTConfig(img_size=56, embed_dim=256, depth=1, num_heads=4, patch_embed="conv")
    abstract = nnx.eval_shape(lambda: VGGT(config, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((1, 3, 56, 56, 3), jnp.float32)
    compiled = jax.jit(lambda m, x: m.aggregator(x)).lower(abstract, images).compile()
    # The compiler counts the patch embedding, norms and activations too: less in a wider model.
    counted = compiled.cost_analysis()["flops"]
    assert 0.8 * counted < sum(config.flops(3, 56, 56)) < counted
