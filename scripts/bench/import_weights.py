"""Seconds and memory of import, verification and export at full size, beside PyTorch's loading.

    python scripts/bench/import_weights.py vggt FOLDER [--output FILE]

Random weights of VGGT-1B (one float32 `.pt`, every key of the official state dict) or Qwen3-4B
(bfloat16 safetensors in shards) are written to the folder first. `RssAnon` of the importing process
is sampled: memory that is its own, not the cache of files.
"""

import argparse
import json
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import sides
import torch
from command_line import new_parser
from safetensors.torch import save_file

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.errors import UserError
from jaxvlm.files import draft_of

ROOT = Path(__file__).parents[2]
_SHARD = 4 * 10**9
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
    "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "rms_norm_eps": 1e-6,
    "rope_theta": 5e6, "tie_word_embeddings": True,
}  # fmt: skip
_TORCH = "torch.load + load_state_dict"
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
        torch.manual_seed(0)
        draft = draft_of(path)
        torch.save({name: torch.randn(shape) for name, (shape, _) in tensors}, draft)
        draft.rename(path)
    return path


def make_qwen3(folder: Path) -> Path:
    """A Hugging Face folder of Qwen3-4B with random values."""
    path = folder / "qwen3"
    if (path / "model.safetensors.index.json").exists():
        return path
    path.mkdir(exist_ok=True)
    torch.manual_seed(0)
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
        raise UserError(f"{shlex.join(command[1:4])} failed, see above")
    watcher.join()
    return {"seconds": time.perf_counter() - start, "peak_gb": peak * 1024 / 1e9}


def main(flags: argparse.Namespace) -> None:
    """Makes the source, measures both sides, prints and saves the table."""
    flags.folder.mkdir(parents=True, exist_ok=True)
    source = {"vggt": make_vggt, "qwen3": make_qwen3}[flags.kind](flags.folder)
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files) / 1e9
    folder = flags.folder.absolute()
    source, imported = str(source.absolute()), str(folder / f"{flags.kind}_imported")
    heads = ["--heads", "camera", "depth", "point"] if flags.kind == "vggt" else []
    # Any tokenizer will do: it is copied.
    exported = str(folder / f"{flags.kind}_exported")
    more = ["--overwrite", "--tokenizer", "jaxvlm:rooms"]
    commands = {
        "convert.import_torch": [
            "-m", "convert.import_torch", flags.kind, source, imported, "--overwrite", *heads
        ],
        "convert.verify": ["-m", "convert.verify", imported, source],
        "convert.export_torch": ["-m", "convert.export_torch", imported, exported, *more],
        _TORCH: ["-c", _LOAD, source],
    }  # fmt: skip
    cases = [{"what": name, **measure([sys.executable, *command])}
             for name, command in commands.items()]  # fmt: skip
    torch_seconds = next(case["seconds"] for case in cases if case["what"] == _TORCH)
    rows = []
    for case in cases:
        case["mb_per_second"] = 1000 * total / case["seconds"]
        case["times_torch"] = torch_seconds / case["seconds"]
        rows.append((
            case["what"], f"{case['seconds']:.1f}", f"{case['mb_per_second']:.0f}",
            f"{case['times_torch']:.2f}", f"{case['peak_gb']:.2f}",
        ))  # fmt: skip
    columns = ("", "seconds", "MB/s", "times as fast as torch", "GB of its own memory")
    print_table(f"{flags.kind}, {total:.2f} GB", columns, rows)
    sides.write_record(flags.output, cases, kind=flags.kind, source_gb=total)


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("kind", choices=("vggt", "qwen3"), help="whose weights")
    flags.add_argument("folder", type=Path, help="for the weights, up to 32 GB of them")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
