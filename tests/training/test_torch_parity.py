"""Ten updates of a tiny model beside the same model written and trained in PyTorch.

Ours reads packed rows in micro-batches; PyTorch reads every sample by itself. Both start from the
same weights, through the name tables, and see the same features as if VGGT had made them.
"""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from convert import parts, qwen3, table
from jaxvlm.config import default
from jaxvlm.data.geometry import FEATURES
from jaxvlm.data.packing import Capacity, Group
from jaxvlm.data.readers import SetReader
from jaxvlm.data.rows import RowBuilder, VisualLayout
from jaxvlm.data.sequence import Sample
from jaxvlm.models.geometry import GeometryConfig
from jaxvlm.models.perceiver import PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vlm import VLMConfig
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training.mesh import make_mesh, shardings
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.parameters import assign_groups
from jaxvlm.training.state import new_state
from jaxvlm.training.step import make_steps

FIXTURE = Path(__file__).parents[1] / "fixtures" / "original_projector_tiny"
SIZES = json.loads(FIXTURE.with_suffix(".json").read_text())["config"] | {"dropout": 0.0}
LATENT, WIDTH = SIZES["latent_dim"], SIZES["out_dim"]
PLACEHOLDER, VIEWS, CONTEXT, POOLED = 60, 3, 12, 2
UPDATES, WARMUP, FINAL, DECAY, CLIP = 10, 2, 0.1, 0.1, 3.5
RATES = {"text_model": 4e-3, "projector": 2e-3, "geom_head": 1e-2}
OURS = {"text_model": "language", "projector": "projector", "geom_head": "geometry"}


class Reader(SetReader):
    """Puts made-up sets into rows; noise stands behind their ends, as nothing there may matter."""

    def empty(self, count):
        draw, zeros = np.random.default_rng(9), np.zeros(count, np.int32)
        features = 9 * draw.standard_normal((count, CONTEXT, SIZES["in_dim"]), np.float32)
        geometry = 9 * draw.standard_normal((count, VIEWS, FEATURES), np.float32)
        counts = {"feature_counts": zeros, "view_counts": zeros.copy()}
        return {"features": features, "geometry": geometry, **counts}

    def read(self, sets, at, record, kept, seed=0):
        for name, counts in (("features", "feature_counts"), ("geometry", "view_counts")):
            sets[name][at][: len(record[name])] = record[name]
            sets[counts][at] = len(record[name])


def make_data():
    """Image sets, samples, and the groups of all rows of both micro-batches of every update."""
    draw, scenes, samples = np.random.default_rng(0), [], []

    def text(low, high):
        return draw.integers(8, PLACEHOLDER, draw.integers(low, high)).astype(np.int32)

    def group():
        views, context = int(draw.integers(1, VIEWS + 1)), draw.integers(5, CONTEXT + 1)
        features = draw.standard_normal((context, SIZES["in_dim"]), np.float32)
        geometry = draw.standard_normal((views, FEATURES), np.float32)
        scenes.append({"features": features, "geometry": geometry})
        first, last = len(samples), len(scenes) - 1
        for _ in range(draw.integers(1, 4)):
            # Each token of an answer follows from the one before: there is something to learn.
            start, length = draw.integers(8), draw.integers(1, 6)
            answer = ((start + 3 * np.arange(length)) % 8).astype(np.int32)
            # Every fourth set is shown without its geometry.
            samples.append(Sample(text(2, 6), text(1, 4), answer, last, last, views, last % 4 > 0))
        return Group(tuple(range(first, len(samples))), tuple(range(views)))

    updates = [[[[group(), group()] for _ in range(2)] for _ in range(2)] for _ in range(UPDATES)]
    return scenes, samples, updates


class Layer(nn.Module):
    """A layer of the projector, under the original's names."""

    def __init__(self):
        super().__init__()
        inner = SIZES["ffn_dim"]
        self.self_attn = nn.MultiheadAttention(LATENT, SIZES["num_heads"], batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(LATENT), nn.LayerNorm(LATENT)
        up, down = nn.Linear(LATENT, inner), nn.Linear(inner, LATENT)
        self.mlp = nn.Sequential(up, nn.GELU(), nn.Dropout(0.0), down)

    def forward(self, latents, context):
        latents = self.norm1(latents + self.self_attn(latents, context, context)[0])
        return self.norm2(latents + self.mlp(latents))


class Projector(nn.Module):
    """Latents that read the features of one image set."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(SIZES["num_latents"], LATENT))
        self.in_proj = nn.Linear(SIZES["in_dim"], LATENT)
        self.layers = nn.ModuleList(Layer() for _ in range(SIZES["num_layers"]))
        self.out_proj = nn.Linear(LATENT, WIDTH)

    def forward(self, features):
        context, latents = self.in_proj(features)[None], self.latents[None]
        for layer in self.layers:
            latents = layer(latents, context)
        return self.out_proj(latents)[0]


class Reference(nn.Module):
    """All parts, under the names of a checkpoint of the original."""

    def __init__(self, pooled: bool, tied: bool):
        super().__init__()
        self.pooled, self.projector = pooled, Projector()
        first, second = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.geom_head = nn.Sequential(first, nn.SiLU(), second)
        recorded = load_file(FIXTURE.with_suffix(".safetensors")).items()
        self.load_state_dict({k[7:]: v for k, v in recorded if k.startswith("params/")})
        sizes = {"vocab_size": 61, "hidden_size": WIDTH, "intermediate_size": 48, "head_dim": 16}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.Qwen3Config(**sizes, num_hidden_layers=2, tie_word_embeddings=tied)
        self.text_model = transformers.Qwen3ForCausalLM(config)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.text_model.named_parameters():
                # Larger than 0.02, so that attention is not near uniform.
                parameter.normal_(mean=float("norm" in name), std=0.2)

    def loss(self, sample: Sample, scene) -> torch.Tensor:
        """Summed cross-entropy of the answer's tokens."""
        visual = [self.projector(torch.from_numpy(scene["features"]))]
        if sample.has_geometry:
            views = torch.from_numpy(scene["geometry"])
            shown = views.mean(0, keepdim=True).repeat(POOLED, 1) if self.pooled else views
            visual.insert(0, self.geom_head(shown))
        texts = sample.before, sample.after, sample.answer
        before, after, answer = (torch.from_numpy(text).long() for text in texts)
        embed = self.text_model.get_input_embeddings()
        x = torch.cat([embed(before), *visual, embed(torch.cat([after, answer[:-1]]))])
        logits = self.text_model(inputs_embeds=x[None], use_cache=False).logits[0]
        return nn.functional.cross_entropy(logits[-len(answer) :], answer, reduction="sum")

    def tensors(self) -> dict[str, np.ndarray]:
        return {name: value.numpy().copy() for name, value in self.state_dict().items()}


def factor(update: int) -> float:
    """The schedule: from 1/(w+1) up to 1 in w updates, then half a cosine."""
    if update < WARMUP:
        return (update + 1) / (WARMUP + 1)
    done = (update - WARMUP) / (UPDATES - WARMUP)
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2


def theirs(model: Reference, data) -> np.ndarray:
    """Loss and gradient norm of every update of `model`."""
    torch.set_num_threads(1)  # On a busy machine threads wait for one another.
    scenes, samples, updates = data
    groups, curve = [], []
    for part, rate in RATES.items():
        own = [p for name, p in model.named_parameters() if name.startswith(part)]
        # Biases and the scales of norms have one axis.
        groups.append({"params": [p for p in own if p.ndim == 1], "lr": rate, "weight_decay": 0})
        groups.append({"params": [p for p in own if p.ndim > 1], "lr": rate})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for update in updates:
        shown = [samples[i] for rows in update for row in rows for g in row for i in g.samples]
        labels = sum(len(sample.answer) for sample in shown)
        loss = sum(model.loss(sample, scenes[sample.record]) for sample in shown) / labels
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        curve.append((loss.item(), norm.item()))
    return np.array(curve)


def ours(model: Reference, data):
    """What `theirs` gives, from the weights of `model`, and the new weights under its names."""
    scenes, samples, updates = data
    language = Qwen3Config.from_hf(model.text_model.config.to_dict())
    mode = "pooled" if model.pooled else "per_view"
    geometry = GeometryConfig(mode, FEATURES, WIDTH, POOLED)
    sizes = {"projector": PerceiverConfig(**SIZES), "geometry": geometry, "language": language}
    rules, shapes = parts.rules(sizes, parts.ORIGINAL), parts.shapes(sizes)
    tensors = model.tensors()
    ignored = qwen3.ignored(language, tensors, parts.ORIGINAL["language"])
    params = flatten(table.to_jax(rules, tensors, unflatten(shapes), ignored))
    config = default()
    config.optimizer.learning_rate.update({OURS[part]: rate for part, rate in RATES.items()})
    config.optimizer.update(warmup_ratio=WARMUP / UPDATES, final_ratio=FINAL, weight_decay=DECAY)
    config.optimizer.update(gradient_clip=CLIP, b1=0.9, b2=0.99, eps=1e-8)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    optimizer, mesh = make_optimizer(groups, config.optimizer, UPDATES), make_mesh(1, -1)
    state = new_state(jax.device_put(params, shardings(shapes, mesh, shapes)), optimizer, mesh)
    steps = make_steps(VLMConfig(vision=None, **sizes), optimizer, jnp.float32, "none", state)
    layout = VisualLayout(mode, geometry.tokens(VIEWS), SIZES["num_latents"])
    capacity, reader = Capacity(192, 2, 999, 32, 3), Reader(framing=None, views=VIEWS)
    builder = RowBuilder(
        scenes, samples, capacity, layout, reader, PLACEHOLDER, pad=0, sources=[0] * len(scenes)
    )
    sums, curve = steps.start(state.params), []
    for update in updates:
        for rows in update:
            batch = builder.batch(rows)
            batch.pop("lost")
            sums = steps.accumulate(state.params, {}, sums, batch, jax.random.key(0))
        state, metrics, sums = steps.update(state, sums)
        curve.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    return np.array(curve), table.to_torch(rules, unflatten(state.params))


def split(tensors):
    """The tensors without the biases of the projector's keys, and these."""
    fused = {k: v.reshape(3, -1) for k, v in tensors.items() if k.endswith("attn.in_proj_bias")}
    kept = {name: value[[0, 2]] for name, value in fused.items()}
    return {**tensors, **kept}, {name: value[1] for name, value in fused.items()}


@pytest.mark.parametrize(
    ("pooled", "tied"), [(False, True), pytest.param(True, False, marks=pytest.mark.slow)]
)
def test_ten_updates_are_those_of_pytorch(pooled, tied):
    data, model = make_data(), Reference(pooled, tied)
    before = model.tensors()
    curve, exported = ours(model, data)
    expected, after = theirs(model, data), model.tensors()
    np.testing.assert_allclose(curve, expected, rtol=1e-4)
    assert expected[-1, 0] < 0.7 * expected[0, 0]
    assert expected[:, 1].min() < 0.9 * CLIP < 1.1 * CLIP < expected[:, 1].max()

    assert set(after) - set(exported) == ({"text_model.lm_head.weight"} if tied else set())
    # A key's bias moves all its scores alike and so has no gradient. Ours stays where it was;
    # PyTorch's has rounding errors for a gradient, which Adam makes large.
    (before, starts), (exported, ends), (after, _) = map(split, (before, exported, after))
    np.testing.assert_equal(ends, starts)
    for name, value in exported.items():
        moved = np.linalg.norm(after[name] - before[name])
        assert np.linalg.norm(value - after[name]) < 1e-3 * moved, name
