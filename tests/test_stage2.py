"""`configs/stage2_arkit.py`: the original's documented Stage 2."""

from pathlib import Path

from jaxvlm.config import load
from jaxvlm.config_checks import check

STAGE2 = str(Path(__file__).parent.parent / "configs" / "stage2_arkit.py")


def test_it_is_the_originals():
    config = load(STAGE2)
    check(config)
    rates, data = config.optimizer.learning_rate, config.data
    assert (rates.language, rates.projector, rates.geometry) == (2e-5, 2e-4, 2e-4)
    assert (config.optimizer.warmup_ratio, config.optimizer.weight_decay) == (0.05, 0.05)
    assert (data.image_size, data.num_views, data.view_dropout) == (448, 10, 0.2)
    assert (config.text.max_length, config.train.max_steps) == (4096, 156)
    assert config.init_from == "runs/stage1"
