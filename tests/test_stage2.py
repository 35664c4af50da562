"""`configs/stage2_arkit.py`: the original's Stage 2 and its variants."""

import numpy as np
import pytest

from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.data.actions.language import write
from jaxvlm.data.rows import digits_before
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.parameters import FROZEN, assign_groups, check_adapters
from jaxvlm.training.state import abstract_parameters

FILE = "configs/stage2_arkit.py"


@pytest.mark.parametrize(
    "variants", ["", "roomplan", "rooms", "mixed", "lora", "roomplan,lora", "rooms,mixed"]
)
def test_every_variant_is_a_run_that_could_start(variants):
    config = load(f"{FILE}:{variants}")
    check(config)
    shapes = abstract_parameters(vlm_config(config.model))
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    check_adapters(groups)
    assert min(config.loss.values()) >= 0 < min(config.loss.language, config.loss.action_json)
    assert groups["action/out_proj/kernel"].name == "action"
    assert config.init_from == ("runs/demo" if "rooms" in variants else "runs/stage1")
    assert config.data.row_labels < config.data.row_length >= config.text.max_length


def test_the_originals_values():
    config = load(FILE)
    data, rates = config.data, config.optimizer.learning_rate
    assert (data.num_views, data.image_size, data.view_dropout) == (10, 448, 0.2)
    assert config.text.max_length == 4096 and config.train.max_steps == 156
    loss = config.loss
    assert (loss.language, loss.action_json, loss.geometry_consistency) == (1, 1, 0.5)
    assert (rates.language, rates.projector, rates.geometry) == (2e-5, 2e-4, 2e-4)
    assert (config.optimizer.weight_decay, config.optimizer.warmup_ratio) == (0.05, 0.05)


def test_lora_freezes_the_language_model_and_its_first_layers():
    config = load(f"{FILE}:lora")
    lora = config.model.language.lora
    assert (lora.rank, lora.alpha) == (32, 64) and set(lora.targets) == {
        "q_proj", "v_proj", "o_proj"
    }  # fmt: skip
    shapes = abstract_parameters(vlm_config(config.model))
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    for path, group in groups.items():
        if path.startswith("language/"):
            learns = "lora_" in path and "frozen_layers" not in path
            assert (group.name != FROZEN) == learns, path
    assert config.model.language.frozen_layers == 2


@pytest.mark.parametrize("variant", ["mixed", "rooms,mixed"])
def test_mixed_has_as_many_questions_as_actions(variant):
    config = load(f"{FILE}:{variant}")
    for split in ("train", "val", "test"):
        if config.data[split]:
            actions, *questions = config.data[split]
            assert sum(each["weight"] for each in questions) == pytest.approx(actions["weight"])


# The small model forgets answers where its head counts four times and they count once.
@pytest.mark.parametrize(("variant", "ratio"), [("mixed", 1), ("rooms,mixed", 3)])
def test_a_question_counts_about_as_much_as_an_actions_text_or_more(variant, ratio):
    loss = load(f"{FILE}:{variant}").loss
    tokenizer = load_tokenizer("jaxvlm:rooms")
    text = write(
        {"action": "place_anchor", "scene": "room_000123", "center": [1.2, -0.84, 0.36],
         "normal": [0.0, 1.0, 0.0], "extent": [0.37, 0.89, 1.83]}
    )  # fmt: skip
    labels, words = tokenizer.encode([text, "two"])
    before = digits_before(np.isin(labels, tokenizer.digits))
    action = (loss.finer_digits**before).sum() + 1
    answer = loss.answers * (len(words) + 1)
    assert 2 / 3 < answer / action / ratio < 3 / 2


def test_the_order_of_variants_is_of_no_account():
    assert load(f"{FILE}:mixed,roomplan").to_dict() == load(f"{FILE}:roomplan,mixed").to_dict()
    with pytest.raises(UserError, match="rooms and roomplan are two data sets"):
        load(f"{FILE}:rooms,roomplan")


def test_an_unknown_variant_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"variants roomplan, rooms, mixed, lora.*'lorra'"):
        load(f"{FILE}:lorra")
