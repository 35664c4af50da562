"""Stage 1's update in PyTorch: as the original makes it, and as well as one can in a day.

Qwen3 is that of transformers with `sdpa`, AdamW is fused, and bfloat16 is autocast on a GPU with
parameters in float32.

Axes: B rows, T tokens a row, S image sets a row, M visual tokens, D width.
"""

import statistics
import time

import made_up
import numpy as np
import sides
import stage1_batches
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch_models import Aggregator, Projector

from jaxvlm.data.geometry import FEATURES

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


def measure(case: dict) -> dict:
    """Seconds of an update over all questions, and what goes with them."""
    config = stage1_batches.SIZES[case["size"]]
    found = stage1_batches.samples(config, case["questions"], case["views"], case["per_set"])
    original = case["side"] == "original"
    if original:
        batches = list(stage1_batches.one_a_row(config, found, case))
    else:
        batches = map(_answers, stage1_batches.packed(config, found, case, "float32"))
    batches = [{k: torch.from_numpy(v) for k, v in batch.items()} for batch in batches]
    if GPU:
        # As ours come: in half precision where they are features, from memory that a GPU reads.
        for batch in batches:
            if "features" in batch:
                batch["features"] = batch["features"].bfloat16()
        batches = [{k: v.pin_memory() for k, v in batch.items()} for batch in batches]
    model = (Original if original else Best)(config)
    made_up.fill(model)
    model.to(DEVICE).train()
    if case["checkpointing"]:
        model.language.gradient_checkpointing_enable()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, weight_decay=0.01, fused=True)
    step = torch.compile(model) if case["compile"] else model
    labels = sum(len(sample.answer) for sample in found)
    losses, taken = [], []
    for _ in range(case["repeats"] + 1):
        began = time.perf_counter()
        total = 0.0
        for batch in batches:
            batch = {name: value.to(DEVICE, non_blocking=True) for name, value in batch.items()}
            with torch.autocast("cuda", torch.bfloat16, enabled=GPU):
                loss = step(**batch)
            (loss / labels).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(total) / labels)
        taken.append(time.perf_counter() - began)
    return {
        # The first one compiles, and takes memory from the system.
        "seconds": statistics.median(taken[1:]),
        "loss": losses[0],
        "peak_gib": sides.peak_gib(torch.cuda.max_memory_allocated() if GPU else None),
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "parameters": sum(p.numel() for p in learning),
    }


def _answers(batch: dict) -> dict:
    """A batch with its real labels and where among all rows' tokens they are told.

    Found here, for on a GPU it would make the host wait.
    """
    row, place = np.nonzero(batch["label_weights"])
    at = row * batch["tokens"].shape[1] + batch["label_positions"][row, place]
    return batch | {"answers_at": at, "answers": batch["labels"][row, place].astype(np.int64)}


def _language(config) -> nn.Module:
    sizes = transformers.Qwen3Config(**config.language.to_hf(), attn_implementation="sdpa")
    sizes.use_cache = False
    return transformers.Qwen3ForCausalLM(sizes)


def _geometry_head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))


class Original(nn.Module):
    """The original's recipe: VGGT in the loop, one question a row, logits everywhere.

    Its projector sees 128 tokens of the first view, and runs without gradients.
    """

    def __init__(self, config):
        super().__init__()
        self.aggregator = Aggregator(config.vision)
        self.projector = Projector(config.projector)
        self.geom_head = _geometry_head(config.language.hidden_size)
        self.language = _language(config)
        for part in (self.aggregator, self.projector):
            part.requires_grad_(False)

    def forward(
        self, tokens: Tensor, labels: Tensor, mask: Tensor, visual: Tensor, geometry: Tensor,
        images: Tensor,
    ) -> Tensor:  # fmt: skip
        """The summed loss of a micro-batch."""
        with torch.no_grad():
            seen = self.aggregator(images)[-1][:, 0, :128]
            latents = self.projector(seen)
        geometry = self.geom_head(geometry)[:, None].expand(-1, 8, -1)
        span = torch.cat((geometry, latents.to(geometry.dtype)), 1)
        x = self.language.get_input_embeddings()(tokens)
        places = visual[:, None] + torch.arange(span.shape[1], device=visual.device)
        x = x.scatter(1, places[..., None].expand(-1, -1, x.shape[-1]), span.to(x.dtype))
        logits = self.language(inputs_embeds=x, attention_mask=mask).logits.float()
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )


class Best(nn.Module):
    """Packed rows of our own, cached features, a trained projector, logits at labels only."""

    def __init__(self, config):
        super().__init__()
        self.projector = Projector(config.projector)
        self.geom_head = _geometry_head(config.language.hidden_size)
        self.language = _language(config)

    def forward(
        self, tokens: Tensor, positions: Tensor, segment_ids: Tensor, visual_index: Tensor,
        answers_at: Tensor, answers: Tensor, features: Tensor, geometry: Tensor, **_: Tensor,
    ) -> Tensor:  # fmt: skip
        """The summed loss of a batch of rows."""
        rows, sets = features.shape[:2]
        latents = self.projector(features.flatten(0, 1))
        poses = self.geom_head(geometry.flatten(0, 1))
        visual = torch.cat((poses, latents.to(poses.dtype)), 1)
        visual = visual.reshape(rows, sets * visual.shape[1], -1)
        x = self.language.get_input_embeddings()(tokens)
        index = visual_index.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]).long()
        x = torch.where((visual_index >= 0)[..., None], visual.gather(1, index).to(x.dtype), x)
        same = segment_ids[:, :, None] == segment_ids[:, None]
        seen = (same & torch.ones_like(same).tril())[:, None]
        hidden = self.language.model(
            inputs_embeds=x, attention_mask=seen, position_ids=positions
        ).last_hidden_state
        logits = self.language.lm_head(hidden.flatten(0, 1)[answers_at]).float()
        return F.cross_entropy(logits, answers, reduction="sum")
