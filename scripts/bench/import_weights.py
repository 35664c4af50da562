"""Seconds and memory of import, verification and export at full size, beside PyTorch's loading.

python scripts/bench/import_weights.py vggt /tmp/bench [--output RESULT.json]

Random weights of VGGT-1B (one float32 `.pt`, every key of the official state dict) or Qwen3-4B
(bfloat16 safetensors in shards) are written to the folder first. `RssAnon` of the importing process
is sampled: memory that is its own, not the cache of files.
"""

import argparse
import json
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from record_file import record_file
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
_SHARD = 4 * 10**9
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
    "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "rms_norm_eps": 1e-6,
    "rope_theta": 5e6, "tie_word_embeddings": True,
}  # fmt: skip
_LOAD = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
source = Path(sys.argv[1])
if source.is_file():
    state = torch.load(source, weights_only=True)
else:
    state = {k: v for f in sorted(source.glob("*.safetensors")) for k, v in load_file(f).items()}
model = torch.nn.Module()
for name, value in state.items():
    model.register_parameter(name.replace(".", "/"), torch.nn.Parameter(torch.empty_like(value)))
model.load_state_dict({name.replace(".", "/"): value for name, value in state.items()})
"""


def make_vggt(folder: Path) -> Path:
    """VGGT-1B's state dict with random values."""
    path = folder / "vggt_1B.pt"
    if not path.exists():
        shapes = json.loads((ROOT / "tests/fixtures/vggt_state_dict.json").read_text())
        tensors = shapes["tensors"].items()
        torch.save({name: torch.randn(shape) for name, (shape, _) in tensors}, path)
    return path


def make_qwen3(folder: Path) -> Path:
    """A Hugging Face folder of Qwen3-4B with random values."""
    path = folder / "qwen3"
    if (path / "model.safetensors.index.json").exists():
        return path
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(_QWEN3))
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        state = Qwen3ForCausalLM(Qwen3Config(**_QWEN3)).state_dict()
    state.pop("lm_head.weight")
    places, shard, size = {}, {}, 0
    for name, value in [*state.items(), (None, None)]:
        if name is None or size > _SHARD:
            file = f"model-{len(set(places.values())) + 1:05}.safetensors"
            save_file(shard, path / file)
            places |= dict.fromkeys(shard, file)
            shard, size = {}, 0
        if name is not None:
            shard[name] = torch.randn(value.shape, dtype=torch.bfloat16)
            size += shard[name].nbytes
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def measure(command: list[str]) -> dict[str, float]:
    """Runs a command; its seconds and the peak of its own memory in GB."""
    peak = 0
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)

    def sample():
        nonlocal peak
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max(peak, *(int(line.split()[1]) for line in lines), 0)
            time.sleep(0.02)

    watcher = threading.Thread(target=sample)
    watcher.start()
    if process.wait():
        sys.exit(f"{command[:4]} failed")
    watcher.join()
    return {"seconds": time.perf_counter() - start, "peak_gb": peak * 1024 / 1e9}


def main() -> None:
    """Makes the source, measures both, prints and saves the table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("kind", choices=("vggt", "qwen3"))
    flags.add_argument("folder", type=Path)
    flags.add_argument("--output", type=record_file)
    given = flags.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    source = {"vggt": make_vggt, "qwen3": make_qwen3}[given.kind](given.folder)
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files) / 1e9
    dest = given.folder / f"{given.kind}_imported"
    heads = ["--heads", "camera", "depth", "point"] if given.kind == "vggt" else []
    where = [str(source.absolute()), str(dest.absolute()), "--overwrite"]
    module = [sys.executable, "-m"]
    exported = [str(dest.absolute()), str(given.folder.absolute() / f"{given.kind}_exported")]
    # Any tokenizer will do: it is copied.
    exported += ["--overwrite", "--tokenizer", "jaxvlm:rooms"]
    rows = {
        "convert.import_torch": measure(
            [*module, "convert.import_torch", given.kind, *where, *heads]
        ),
        "convert.verify": measure([*module, "convert.verify", *reversed(where[:2])]),
        "convert.export_torch": measure([*module, "convert.export_torch", *exported]),
        "torch.load + load_state_dict": measure([sys.executable, "-c", _LOAD, str(source)]),
    }
    print(f"{given.kind}, {total:.2f} GB")
    for name, row in rows.items():
        row["mb_per_second"] = 1000 * total / row["seconds"]
        print(f"{name:30} {row['seconds']:7.1f} s {row['mb_per_second']:7.0f} MB/s "
              f"{row['peak_gb']:6.2f} GB of its own memory")  # fmt: skip
    if given.output:
        record = {"kind": given.kind, "source_gb": total, "machine": platform.platform(),
                  "rows": rows}  # fmt: skip
        given.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
