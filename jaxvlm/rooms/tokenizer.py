r"""Makes the small tokenizer that is shipped, from the rooms' own questions, answers and actions:

python -m jaxvlm.rooms.tokenizer --output FOLDER \
    --records runs/demo/rooms/train.jsonl runs/demo/rooms/actions_train.jsonl
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxvlm import entry
from jaxvlm.data.records import RecordFile

# Qwen's special tokens that the sequence layout uses.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# As Qwen splits: words with their leading space, single digits, runs of signs, line ends.
_SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; every text can be written, words of the corpus are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _texts(files: Iterable[RecordFile]) -> Iterator[str]:
    """What a model reads and writes of every record; an action's texts are what it learns."""
    for records in files:
        for record in records:
            asked = f"{record.situation or ''} {record.question}\n"
            yield asked.removeprefix(" ")
            yield record.answer


def main(flags: argparse.Namespace) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    files = [RecordFile(path) for path in flags.records]
    flags.output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(_texts(files), flags.vocab_size)
    tokenizer.save(str(flags.output / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
    }
    (flags.output / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens in {flags.output}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.rooms.tokenizer", description=__doc__)
    flags.add_argument("--records", required=True, type=Path, nargs="+", metavar="FILE")
    flags.add_argument("--output", required=True, type=Path)
    flags.add_argument("--vocab_size", type=int, default=640)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
