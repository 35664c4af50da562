"""The launchers in scripts/: what they make of their words, and when a job is started again."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def launched(*words, **environment):
    """The command that train.sh starts, or its error."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "WORKDIR")}
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "train.sh", *words],
        env={**kept, "PYTHON": "/bin/true", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "config", "workdir", "devices"),
    [
        ([], "stage1.py", "stage1", 2),
        (["debug", "1"], "stage1.py:debug", "stage1_debug", 1),
        (["full", "8"], "stage1.py", "stage1", 8),
        (["--safe", "full", "2"], "stage1.py:safe", "stage1_safe", 2),
        (["--safe", "debug"], "stage1.py:debug,safe", "stage1_debug_safe", 2),
        (["4"], "stage1.py", "stage1", 4),
    ],
)
def test_words_are_the_originals(words, config, workdir, devices):
    code, said = launched(*words)
    assert code == 0, said
    flags = f"--config configs/{config} --workdir runs/{workdir} --devices {devices}"
    assert f"-m jaxvlm.train {flags}" in said


def test_the_environment_and_further_flags_are_taken():
    environment = {"BATCH_PER_GPU": "4", "GRAD_ACCUM": "16", "DATALOADER_NUM_WORKERS": "2"}
    code, said = launched("full", "4", "--config.train.save_every=20", **environment)
    assert code == 0
    for flag in ("data.pack=False", "train.rows_per_device=4", "train.accumulation=16",
                 "data.num_workers=2", "train.save_every=20"):  # fmt: skip
        assert f"--config.{flag}" in said
    _, said = launched(GRAD_ACCUM="8")
    assert "rows_per_device=6 --config.train.accumulation=8" in said


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["fast"], {}, "unknown mode 'fast'"),
        (["full", "none"], {}, "unknown mode 'none'"),
        (["full", "4x"], {}, "num_gpus=4x is no number"),
        (["9" * 20], {}, "is no number"),
        (["full", "0"], {}, "num_gpus=0 is no number"),
        (["full"], {"BATCH_PER_GPU": "many"}, "BATCH_PER_GPU=many is no number"),
        (["--safe"], {"GRAD_ACCUM": "8"}, "--safe is 1 question x 4"),
        (["full", "4"], {"CUDA_VISIBLE_DEVICES": "4,5"}, "4 GPUs, but CUDA_VISIBLE_DEVICES=4,5"),
        ([], {"CUDA_VISIBLE_DEVICES": ","}, "2 GPUs, but CUDA_VISIBLE_DEVICES=,"),
        ([], {"CUDA_VISIBLE_DEVICES": ""}, "2 GPUs, but CUDA_VISIBLE_DEVICES="),
    ],
)
def test_wrong_words_are_answered(words, environment, message):
    code, said = launched(*words, **environment)
    assert code == 2 and message in said and "[--safe] [debug|full] [num_gpus]" in said


@pytest.mark.parametrize(
    ("code", "restarts", "saves", "requeued"),
    [
        (0, 0, True, False),
        (1, 0, True, False),
        (2, 0, True, False),
        # Asked to stop; killed, with and without a checkpoint since the start.
        (75, 3, False, True),
        (137, 0, True, True),
        (137, 0, False, False),
        (75, 20, True, False),
    ],
)
def test_a_job_is_started_again_where_that_helps(tmp_path, code, restarts, saves, requeued):
    # Later than the start also where clocks tick slowly.
    saved = "mkdir -p run/checkpoints/10; touch -d '1 minute' run/checkpoints/10;" if saves else ""
    (tmp_path / ".cache").mkdir()
    # As on clusters, where runs are often a link to another disk.
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    old = tmp_path / "run" / "checkpoints" / "5"
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    script = f"""
        srun() {{ {saved} return {code}; }}
        scontrol() {{ echo "scontrol $*"; }}
        sleep() {{ :; }}
        source {ROOT}/scripts/slurm/launch.sh
        again python -m jaxvlm.train
    """
    names = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[1-2]", "WORKDIR": "run"}
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path,
        env={**os.environ, **names, "SLURM_RESTART_COUNT": str(restarts)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("scontrol requeue 7" in done.stdout) == requeued


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ([], "8"),
        (["debug"], "debug 8"),
        (["--safe", "full", "4"], "--safe full 4"),
        (["full", "--config.train.save_every", "20"], "full 8 --config.train.save_every 20"),
    ],
)
def test_a_job_takes_all_its_gpus_unless_told(tmp_path, words, made):
    for name in ("environment.sh", "slurm/launch.sh"):
        place = tmp_path / "scripts" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text('again() { echo "$*"; }\n' if "launch" in name else "")
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm" / "run.sh", *words],
        env={**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS": "h100:8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"scripts/train.sh {made}\n", done.stderr


def test_batch_scripts_are_read_by_slurm_as_meant():
    """Directives stand before the first command, and name no cluster."""
    for path in (ROOT / "scripts" / "slurm").glob("*.sbatch"):
        lines = path.read_text().splitlines()
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        directives = [line for line in lines if line.startswith("#SBATCH")]
        assert directives and all(lines.index(line) < first for line in directives), path
        assert "#SBATCH --output=jaxvlm_%j.out" in directives and "#SBATCH --requeue" in directives
        assert not any("partition" in line or "account" in line for line in directives)
