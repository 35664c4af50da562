"""Weights from the Hugging Face hub, kept in its cache (HF_HOME)."""

import fnmatch
import re
from pathlib import Path

from convert.source import SMALL
from jaxvlm.data.tokenizer import BUILT_IN
from jaxvlm.errors import UserError

# What a kind reads, the best first.
_WEIGHTS = {
    "vggt": ("*.safetensors", "*.pt", "*.bin"),
    "qwen3": ("*.safetensors", "*.bin"),
    "original": ("*.safetensors", "*.bin", "pytorch_model_fp32/*", "pytorch_model_fp32.bin/*"),
}


def is_name(source: str) -> bool:
    """Whether `source` could be a hub id: `owner/name`, and nothing of that path exists here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not Path(source).exists()


def download(name: str, revision: str | None, kind: str) -> tuple[Path, str]:
    """The files of a repository that a kind needs, downloaded where they are not yet.

    A download that broke off goes on where it stood.

    Args:
      name: of the repository.
      revision: branch, tag or commit; None is the newest.
      kind: as for `kinds.find`.

    Returns:
      The folder in the cache, and the commit.

    Raises:
      UserError: the hub cannot be reached, or has no such repository, or access is not granted.
    """
    # Not at the top: it takes a while to import.
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError

    where = f"https://huggingface.co/{name}"
    try:
        info = hub.HfApi().model_info(name, revision=revision)
        files = [file.rfilename for file in info.siblings or ()]
        patterns = [p for p in _WEIGHTS[kind] if fnmatch.filter(files, p)][:1]
        if not patterns:
            raise UserError(f"{where} holds no weights {' or '.join(_WEIGHTS[kind])}")
        folder = hub.snapshot_download(name, revision=revision, allow_patterns=_with(patterns[0]))
    except UserError:
        raise
    except GatedRepoError:
        raise UserError(
            f"{where} asks for consent first: request access there, then set HF_TOKEN or run "
            "'hf auth login', and repeat the command"
        ) from None
    except HfHubHTTPError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        at = f" at revision {revision!r}" if revision else ""
        raise UserError(
            f"{name!r} is no folder or file here, and the hub does not give it{at}: {reason}"
        ) from None
    except (OSError, HTTPError) as error:
        for pattern in _WEIGHTS[kind]:
            kept = _kept(name, revision, _with(pattern))
            if kept and list(kept.glob(pattern)):
                print(f"the hub cannot be reached; using what was downloaded before: {kept}")
                return kept, kept.name
        raise UserError(
            f"{name!r} is no folder or file here, and the hub cannot be reached "
            f"({type(error).__name__}). Repeat the command, it goes on where it stood; without a "
            f"network, download {where} elsewhere (hf download "
            f"{name} --local-dir FOLDER), copy the folder, and give its path"
        ) from None
    return Path(folder), Path(folder).name


def _with(weights: str) -> list[str]:
    """What is downloaded with weights of a pattern."""
    return [weights, f"{weights}.index.json", *SMALL]


def tokenizer_folder(name: str) -> Path:
    """The folder with the files of a tokenizer: a path, a name of the package, or a hub id.

    Raises:
      UserError: the hub does not give it.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if not is_name(name):
        return Path(name)
    import huggingface_hub as hub
    from huggingface_hub.errors import HTTPError

    # Training used it: it lies in the cache.
    if kept := _kept(name, None, list(SMALL)):
        return kept
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(SMALL)))
    except (OSError, HTTPError) as error:
        raise UserError(
            f"the tokenizer {name!r} is no folder here and the hub does not give it "
            f"({type(error).__name__}); give --tokenizer FOLDER"
        ) from None


def _kept(name: str, revision: str | None, patterns: list[str]) -> Path | None:
    """The folder of the cache, if an earlier download left all files of `patterns`."""
    import huggingface_hub as hub

    try:
        return Path(
            hub.snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        )
    except OSError:
        return None
