"""Stage 1's questions as both sides read them: packed into rows, or one a row.

Real lengths (`sqa3d_lengths.json`), made-up tokens, images and features. Axes: B rows, T tokens a
row, S image sets a row, V views, Q questions.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxvlm.data.geometry import FEATURES
from jaxvlm.data.packing import Capacity, Packer
from jaxvlm.data.readers import SetReader
from jaxvlm.data.rows import RowBuilder, VisualLayout
from jaxvlm.data.sequence import Sample
from jaxvlm.data.views import RandomViews
from jaxvlm.models.geometry import GeometryConfig
from jaxvlm.models.perceiver import PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vggt.config import VGGTConfig
from jaxvlm.models.vlm import VLMConfig

LENGTHS = Path(__file__).with_name("sqa3d_lengths.json")


def made(vision: VGGTConfig, projector: tuple[int, ...], language: Qwen3Config) -> VLMConfig:
    """A model; of the projector: latent width, latents, heads, layers, feed-forward width."""
    width = language.hidden_size
    return VLMConfig(
        vision,
        PerceiverConfig(2 * vision.embed_dim, *projector, out_dim=width),
        GeometryConfig(out_dim=width),
        language,
    )


SIZES = {
    "4b": made(
        VGGTConfig(),
        (4096, 128, 8, 6, 16384),
        Qwen3Config(151_936, 2_560, 36, 32, 8, 128, 9_728),
    ),
    "100m": made(
        VGGTConfig(embed_dim=512, depth=6, num_heads=8, vit_depth=6, vit_heads=8),
        (512, 128, 8, 6, 2048),
        Qwen3Config(32_000, 768, 12, 12, 4, 64, 2_048),
    ),
    "10m": made(
        VGGTConfig(embed_dim=192, depth=3, num_heads=3, vit_depth=3, vit_heads=3),
        (256, 128, 4, 3, 1024),
        Qwen3Config(8_000, 256, 6, 8, 4, 32, 768),
    ),
}


def samples(config: VLMConfig, count: int, views: int, per_set: int) -> list[Sample]:
    """Q questions, of which so many in a row are about one image set."""
    lengths = json.loads(LENGTHS.read_text(encoding="utf-8"))["questions"]
    rng = np.random.default_rng(0)
    # Evenly over all that there are.
    chosen = [lengths[i * len(lengths) // count % len(lengths)] for i in range(count)]

    def draw(size: int) -> np.ndarray:
        return rng.integers(10, config.language.vocab_size, size).astype(np.int32)

    return [
        Sample(draw(text), draw(1), draw(answer), i, i // per_set, views, has_geometry=True)
        for i, (_, text, answer) in enumerate(chosen)
    ]


@dataclasses.dataclass(frozen=True)
class _MadeUp(SetReader):
    """Features that no image ever had."""

    framing: object = None
    views: int = 1
    tokens: int = 0
    width: int = 0
    dtype: str = "float32"

    def empty(self, count: int) -> dict[str, np.ndarray]:
        return {
            "features": np.zeros((count, self.tokens, self.width), self.dtype),
            "feature_counts": np.zeros(count, np.int32),
            "view_counts": np.zeros(count, np.int32),
            "geometry": np.zeros((count, self.views, FEATURES), np.float32),
        }

    def read(self, sets, at, record, kept, seed=0) -> None:
        rng = np.random.default_rng(record)
        features = rng.standard_normal((self.tokens, self.width), np.float32)
        sets["features"][at] = features.astype(self.dtype)
        sets["feature_counts"][at], sets["view_counts"][at] = self.tokens, self.views
        sets["geometry"][at] = rng.standard_normal((self.views, FEATURES))

    def has_geometry(self, record) -> bool:
        return True


def packed(
    config: VLMConfig, found: list[Sample], case: dict, dtype: str
) -> list[dict[str, np.ndarray]]:
    """Micro-batches of rows of `row_length` tokens that hold all questions, without padding rows.

    Their number is what the questions fill; the last batch may hold empty rows.
    """
    views, per_set = case["views"], case["per_set"]
    layout = VisualLayout("per_view", views, config.projector.num_latents)
    tokens = views * config.vision.tokens_per_view(case["pixels"], case["pixels"])
    reader = _MadeUp(views=views, tokens=tokens, width=config.projector.in_dim, dtype=dtype)
    most = -(-case["row_length"] // (128 * per_set))
    capacity = Capacity(case["row_length"], most, most * views, 4 * most * per_set, per_set)
    packer = Packer(
        found,
        capacity,
        lambda views, known: len(layout.index(views, known)),
        RandomViews(most=views),
    )
    rows = packer.pack(range(len(found)), np.random.default_rng(0))
    # As many sets a row as one has.
    sets = max(map(len, rows))
    builder = RowBuilder(
        range(len(found)), found, dataclasses.replace(capacity, sets=sets), layout, reader, 0, 0,
        [0] * len(found),
    )  # fmt: skip
    return [
        {
            name: value
            for name, value in builder.batch(
                _filled(rows[start : start + case["rows"]], case)
            ).items()
            if name != "lost"
        }
        for start in range(0, len(rows), case["rows"])
    ]


def _filled(rows: list, case: dict) -> list:
    return [*rows, *[[]] * (case["rows"] - len(rows))]


def one_a_row(
    config: VLMConfig, found: list[Sample], case: dict
) -> Iterator[dict[str, np.ndarray]]:
    """Micro-batches as the original makes them: tokens [B, T] padded to 512 with their images.

    `visual` says where the span of its 8 geometry tokens and latents begins.
    """
    rng = np.random.default_rng(0)
    span, side = 8 + config.projector.num_latents, case["pixels"]
    for start in range(0, len(found), case["micro_batch"]):
        chosen = found[start : start + case["micro_batch"]]
        length = 512
        if case["padding"] == "longest":
            length = max(sample.length(span) + 1 for sample in chosen)
        shape = (len(chosen), length)
        batch = {
            "tokens": np.zeros(shape, np.int64),
            "labels": np.full(shape, -100, np.int64),
            "mask": np.zeros(shape, np.int64),
            "visual": np.zeros(len(chosen), np.int64),
            "geometry": rng.standard_normal((len(chosen), FEATURES), np.float32),
            "images": rng.random((len(chosen), case["views"], 3, side, side), np.float32),
        }
        for number, sample in enumerate(chosen):
            head = [*sample.before, *[0] * span, *sample.after]
            whole = [*head, *sample.answer]
            batch["tokens"][number, : len(whole)] = whole
            batch["labels"][number, len(head) : len(whole)] = sample.answer
            batch["mask"][number, : len(whole)] = 1
            batch["visual"][number] = len(sample.before)
        yield batch
