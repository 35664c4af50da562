"""Where weights come from: folders of the original, the hub; and what happens on bad days."""

import fcntl
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from convert import import_torch
from convert.source import open_original
from jaxvlm.errors import UserError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "original_projector_tiny.safetensors"
REPOSITORY = Path(__file__).parents[2]


def weights() -> dict[str, np.ndarray]:
    found = load_file(FIXTURE)
    return {k.removeprefix("params/"): v for k, v in found.items() if k.startswith("params/")}


def marked(value: float) -> dict[str, torch.Tensor]:
    """The fixture's tensors, all equal to `value`: tells which file was read."""
    return {k: torch.full(v.shape, value) for k, v in weights().items()}


def run(*arguments) -> None:
    import_torch.main(import_torch.parser().parse_args([str(a) for a in arguments]))


def command(*arguments, **environment) -> list[str]:
    return [sys.executable, "-m", "convert.import_torch", *map(str, arguments)]


def test_the_originals_folders_are_tried_in_its_order(tmp_path):
    (tmp_path / "scheduler.bin").write_bytes(b"no weights")
    torch.save(marked(3), tmp_path / "pytorch_model.bin")
    assert open_original(tmp_path)["projector.latents"].max() == 3
    for number, name in ((2, "pytorch_model_fp32.bin"), (1, "pytorch_model_fp32")):
        (tmp_path / name).mkdir()
        torch.save(marked(number), tmp_path / name / "pytorch_model.bin")
        assert open_original(tmp_path)["projector.latents"].max() == number


@pytest.mark.parametrize("given", ["", "pytorch_model"])
def test_zero_shards_are_refused_with_the_command_that_joins_them(tmp_path, given):
    (tmp_path / "pytorch_model").mkdir()
    (tmp_path / "pytorch_model" / "mp_rank_00_model_states.pt").write_bytes(b"")
    (tmp_path / "scheduler.bin").write_bytes(b"")
    expected = rf"cd {tmp_path} && python zero_to_fp32.py pytorch_model pytorch_model_fp32"
    with pytest.raises(UserError, match=expected):
        run("original", tmp_path / given, tmp_path / "out")


def test_the_projectors_own_sizes_are_a_model_config(tmp_path, capsys):
    save_file(weights(), tmp_path / "mine.safetensors")
    given = ("--model-config", FIXTURE.with_suffix(".json"))
    run("original", tmp_path / "mine.safetensors", tmp_path / "out", *given)
    assert "assumed" not in capsys.readouterr().out
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["model"]["projector"]["num_heads"] == 4


def test_what_was_assumed_is_said(tmp_path, capsys):
    save_file(weights(), tmp_path / "mine.safetensors")
    run("original", tmp_path / "mine.safetensors", tmp_path / "out")
    out = capsys.readouterr().out
    assert "assumed, as --model-config does not say otherwise: 8 heads of the projector" in out
    assert "not in the source: vision, language" in out
    assert f"--config.model.geometry.weights={tmp_path / 'out'}" in out


def test_a_wrong_kind_is_named(tmp_path):
    save_file(weights(), tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"qwen3 expects Qwen3ForCausalLM .* geom_head, projector"):
        run("qwen3", tmp_path / "mine.safetensors", tmp_path / "out")
    with pytest.raises(UserError, match=r"--revision v1: .*mine.safetensors' is a path"):
        run("original", tmp_path / "mine.safetensors", tmp_path / "out", "--revision", "v1")


def test_numbers_of_another_kind_are_named(tmp_path):
    save_file({"projector.latents": np.zeros(3, np.uint16)}, tmp_path / "odd.safetensors")
    with pytest.raises(
        UserError, match=r"odd.safetensors: the tensor 'projector.latents' is of U1"
    ):
        run("original", tmp_path / "odd.safetensors", tmp_path / "out")


def saved(folder: Path, what: str) -> Path:
    """A file that is nearly right."""
    state = {k: torch.from_numpy(v) for k, v in weights().items()}
    file = folder / "mine.pt"
    if what == "empty":
        file.write_bytes(b"")
    elif what == "old":
        torch.save(state, file, _use_new_zipfile_serialization=False)
    elif what == "mixed":
        torch.save(state | {"epoch": 3}, file)
    elif what == "sparse":
        torch.save(state | {"projector.latents": torch.eye(3).to_sparse()}, file)
    elif what == "flat":
        torch.save(state | {"projector.latents": torch.zeros(3)}, file)
    elif what == "double":
        torch.save(state | {"projector.latents": state["projector.latents"].double()}, file)
    return file


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", r"mine.pt is no whole file of torch.save: it is cut off"),
        ("old", r"mine.pt is no whole file of torch.save: .*before 1.6"),
        ("mixed", r"mine.pt holds no state dict of tensors alone.*no tensors are \['epoch'\]"),
        ("sparse", r"mine.pt: 'projector.latents' is sparse or quantized"),
        ("flat", r"'projector.latents' has the shape \[3\]; expected 2 axes"),
        ("double", r"dtype: 'projector.latents' is float64; expected float32, float16 or bfl"),
    ],
)
def test_files_that_are_nearly_right_are_explained(tmp_path, what, message):
    with pytest.raises(UserError, match=message):
        run("original", saved(tmp_path, what), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"projecter": {}}, r"expected some of aggregator, vit, .*projector, text_model"),
        ({"projector": 3}, r"--model-config: sizes are missing or of a wrong type"),
        ({"projector": {"num_heads": "x"}}, r"--model-config: sizes are missing or of a wrong"),
        ({"projector": {"num_heads": 0}}, r"projector.num_heads is 0; expected at least 1"),
        ({"projector": {"num_heads": 3}}, r"latent_dim=64 is not a multiple of .*num_heads=3"),
    ],
)
def test_impossible_sizes_are_explained(tmp_path, sizes, message):
    save_file(weights(), tmp_path / "mine.safetensors")
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    with pytest.raises(UserError, match=message):
        run("original", tmp_path / "mine.safetensors", tmp_path / "out", "--model-config",
            tmp_path / "sizes.json")  # fmt: skip


def tmpfs(folder: Path, size: str, *arguments) -> subprocess.CompletedProcess:
    """Runs an import in a name space where `folder` is a file system of `size`."""
    folder.mkdir()
    script = 'mount -t tmpfs -o size="$1" none "$2" && shift 2; "$@"; x=$?; ls -A "$OUT"; exit $x'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", size, str(folder), *command(*arguments)],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"OUT": str(folder)},
    )  # fmt: skip


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    probe = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs none {tmp_path}"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    save_file(weights(), tmp_path / "mine.safetensors")
    disk = tmp_path / "disk"
    # 64 KB are less than the parameters, 400 KB less than what Orbax writes beside them.
    for number, size in enumerate(("64k", "400k")):
        folder = disk.with_name(f"disk{number}")
        done = tmpfs(folder, size, "original", tmp_path / "mine.safetensors", folder / "out")
        assert done.returncode == 2, (done.stdout, done.stderr)
        assert "out cannot be written: " in done.stderr and "Traceback" not in done.stderr
        assert "out" not in done.stdout.split(), done.stdout


def test_a_killed_import_leaves_no_folder_that_looks_complete(tmp_path):
    save_file(weights(), tmp_path / "mine.safetensors")
    part = tmp_path / "out.part"
    process = subprocess.Popen(
        command("original", tmp_path / "mine.safetensors", tmp_path / "out"), cwd=REPOSITORY
    )
    while not (part / "scratch").is_dir() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists() and (part / "UNFINISHED").is_file()
    run("original", tmp_path / "mine.safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "meta.json").is_file() and not part.exists()
    assert not (tmp_path / "out" / "UNFINISHED").exists()


def test_two_imports_do_not_share_a_folder(tmp_path):
    save_file(weights(), tmp_path / "mine.safetensors")
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "theirs").write_text("work")
    with pytest.raises(UserError, match=r"out.part is in the way and was not written by this"):
        run("original", tmp_path / "mine.safetensors", tmp_path / "out")
    with (part / "UNFINISHED").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"out.part is being written by another process"):
            run("original", tmp_path / "mine.safetensors", tmp_path / "out")
    assert (part / "theirs").read_text() == "work"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one repository; the first download of weights breaks off in the middle."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    commit = "0123456789012345678901234567890123456789"
    ranges: list[str]
    breaks: bool

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        parts = self.path.split("?")[0].split("/")
        if self.path.startswith("/api/models/lab/rooms/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": name}
                for name, content in self.files.items()
            ]
            return self.send(json.dumps(tree).encode(), body)
        if self.path.startswith("/api/models/lab/rooms"):
            found = {"id": "lab/rooms", "sha": self.commit}
            found["siblings"] = [{"rfilename": name} for name in self.files]
            return self.send(json.dumps(found).encode(), body)
        if self.path.startswith("/lab/rooms/resolve/") and parts[-1] in self.files:
            return self.send(self.files[parts[-1]], body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def send(self, content: bytes, body: bool):
        total, start = len(content), 0
        if asked := self.headers.get("Range"):
            self.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(total - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if body and self.breaks and total > 10_000 and not asked:
            self.wfile.write(content[: total // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content[start:])


@pytest.fixture
def hub():
    class Mine(Hub):
        files, ranges, breaks = {}, [], False

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Mine, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def from_hub(endpoint: str, home: Path, *arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, env=environment
    )


def test_a_download_goes_on_where_it_broke_off(hub, tmp_path):
    server, endpoint = hub
    # The hub's library writes 10 MB at a time.
    filler = {"filler": np.zeros(24 * 2**20, np.uint8)}
    save_file(weights() | filler, tmp_path / "mine.safetensors")
    server.files["model.safetensors"] = (tmp_path / "mine.safetensors").read_bytes()
    server.breaks = True
    done = from_hub(endpoint, tmp_path / "home", "original", "lab/rooms", tmp_path / "out")
    assert server.ranges and server.ranges[-1].startswith("bytes=1")
    assert done.returncode == 2 and "no place: 'filler'" in done.stderr


def test_a_hub_id_is_downloaded_once(hub, tmp_path):
    server, endpoint = hub
    save_file(weights(), tmp_path / "mine.safetensors")
    server.files["model.safetensors"] = (tmp_path / "mine.safetensors").read_bytes()
    server.files["pytorch_model.bin"] = b"the same again, not wanted"
    home = tmp_path / "home"
    arguments = ("original", "lab/rooms", tmp_path / "out", "--revision", "v1")
    done = from_hub(endpoint, home, *arguments)
    assert done.returncode == 0, done.stderr
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["source"] == f"https://huggingface.co/lab/rooms at {server.commit}"
    digest = hashlib.sha256(server.files["model.safetensors"]).hexdigest()
    assert meta["files"] == {"model.safetensors": digest}
    assert not list(home.rglob("pytorch_model.bin"))
    # The hub has gone; the cache has it.
    again = from_hub("http://127.0.0.1:9", home, "original", "lab/rooms", tmp_path / "second",
                     "--revision", "v1")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "cannot be reached; using what was downloaded before" in again.stdout


def test_a_hub_that_does_not_answer_or_know_is_explained(hub, tmp_path):
    _, endpoint = hub
    home = tmp_path / "home"
    away = from_hub("http://127.0.0.1:9", home, "original", "lab/rooms", tmp_path / "out")
    assert away.returncode == 2 and "Traceback" not in away.stderr
    assert "'lab/rooms' is no folder or file here, and the hub cannot be reached" in away.stderr
    assert "hf download lab/rooms --local-dir FOLDER" in away.stderr
    unknown = from_hub(endpoint, home, "original", "lab/kitchens", tmp_path / "out")
    assert unknown.returncode == 2
    assert "'lab/kitchens' is no folder or file here, and the hub does not give" in unknown.stderr
