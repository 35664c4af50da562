"""What an update's batches hold, and the operations that takes."""

import numpy as np
import pytest

from jaxvlm.config import default
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.hardware import ACCELERATORS, by_kind
from jaxvlm.training.parameters import assign_groups, trainable
from jaxvlm.training.state import abstract_parameters
from jaxvlm.training.work import Work, forward_flops, model_flops, trained_shares, work_of

# One question of 190 tokens, 10 of them labels, about 8 views, with nothing else in its row.
ONE = Work(samples=1, tokens=190, pairs=190 * 191 / 2, sets=1, views=8, squares=64, labels=10)
SIDE = (448, 448)


def full_size(**rules):
    config = default()
    model = vlm_config(config.model)
    shapes = abstract_parameters(model)
    rules = rules.get("rules", config.parameters)
    groups = assign_groups(rules, shapes, config.optimizer.learning_rate)
    return model, shapes, trained_shares(shapes, trainable(groups))


def test_counts_are_of_what_is_no_padding(toy):
    batch = toy.batch() | {"view_counts": np.array([[2, 0], [1, 2]], np.int32)}
    found = work_of(batch)
    samples = pairs = tokens = 0
    for row in np.asarray(batch["segment_ids"]):
        lengths = np.bincount(row)[1:]
        samples += len(lengths)
        tokens += lengths.sum()
        pairs += (lengths * (lengths + 1) // 2).sum()
    views = np.asarray(batch["view_counts"])
    expected = Work(samples, tokens, pairs, (views > 0).sum(), views.sum(), (views**2).sum(),
                    np.asarray(batch["label_weights"]).sum())  # fmt: skip
    assert [float(count) for count in found] == [float(count) for count in expected]
    assert samples > 0


def test_linear_operations_are_two_for_each_parameter_and_token():
    """Of the language model, whose kernels see every token once, and of its tied head."""
    model, shapes, _ = full_size()
    kernels = sum(leaf.size for path, leaf in shapes.items()
                  if path.startswith("language/layers") and path.endswith("kernel"))  # fmt: skip
    found = forward_flops(model, ONE, SIDE)["language"]
    head = model.language.vocab_size * model.language.hidden_size
    assert found.linear == 2 * (kernels * ONE.tokens + head * ONE.labels)
    # 36 layers x 32 heads x 128, scores and values.
    assert found.attention == 4 * 36 * 32 * 128 * ONE.pairs


def learning(forward):
    """Of the parts behind a frozen VGGT, those whose first map passes no gradient on."""
    return forward["projector"], forward["geometry"]


def test_a_full_size_question_counted_by_hand():
    model, _, shares = full_size()
    forward = forward_flops(model, ONE, SIDE)
    assert sum(forward["vision"]) / 1e12 == pytest.approx(23.25, rel=5e-3)
    width, ffn, context = 4096, 16384, 8 * 1029
    # In, out, and six layers of query, key map, value map, output and MLP on 128 latents.
    linear = 128 * width * 2560 + 6 * 128 * (4 * width**2 + 2 * width * ffn)
    assert forward["projector"].linear == 2 * linear
    assert forward["projector"].entry == 2 * context * 2048 * width
    # Eight heads of the whole width score and read the context.
    assert forward["projector"].attention == 2 * 2 * 6 * 128 * 8 * context * width
    learnt = sum(3 * sum(flops) - flops.entry for flops in learning(forward))
    learnt += 3 * sum(forward["language"])
    assert model_flops(model, ONE, SIDE, shares) == pytest.approx(sum(forward["vision"]) + learnt)
    assert model_flops(model, ONE, SIDE, shares, cached=True) == pytest.approx(learnt)


def test_a_frozen_language_model_lets_gradients_through():
    rules = (("(projector|geometry)/.*", "projector"), (".*", "frozen"))
    model, _, shares = full_size(rules=rules)
    forward = forward_flops(model, ONE, SIDE, cached=True)
    language = forward["language"]
    expected = 2 * language.linear + 3 * language.attention
    expected += sum(3 * sum(flops) - flops.entry for flops in learning(forward))
    assert model_flops(model, ONE, SIDE, shares, cached=True) == pytest.approx(expected)


def test_an_original_projector_reads_only_the_first_tokens():
    config = default()
    config.model.projector.context = "first"
    found = forward_flops(vlm_config(config.model), ONE, SIDE)["projector"]
    assert found.attention == 2 * 2 * 6 * 128 * 8 * 128 * 4096


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_an_accelerator_is_known_by_its_kind(kind, name):
    assert by_kind(kind).name == name


def test_what_only_looks_alike_is_not_known():
    for kind in ("cpu", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert by_kind(kind) is None
    assert len({known.name for known in ACCELERATORS}) == len(ACCELERATORS)
