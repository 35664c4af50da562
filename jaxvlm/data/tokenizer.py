"""Text to token ids and back, with the two reserved ids behind the tokenizer's own."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from jaxvlm.errors import UserError, first_line

# Tokenizers shipped in the package, by name.
BUILT_IN = {"jaxvlm:rooms": Path(__file__).parent.parent / "assets" / "rooms_tokenizer"}


def _byte_letters() -> dict[str, int]:
    """The bytes by the letters that byte-level BPE writes for them (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in shown]
    letters = {chr(value): value for value in shown}
    return letters | {chr(256 + place): value for place, value in enumerate(others)}


_BYTES = _byte_letters()


class Tokenizer:
    """A Hugging Face fast tokenizer with Qwen's special tokens.

    Attributes:
      end_id: id of `<|im_end|>`, the end of an answer.
      pad_id: id of `<|endoftext|>`.
      placeholder_id: the first row beyond the tokenizer (151,669 for Qwen3); it has no string and
        stands where a visual vector is inserted.
      action_id: the row after it, which stands in front of an action.
      digits: ids of the digits; Qwen3 splits numbers into these.
    """

    def __init__(self, name: str):
        """Loads a tokenizer from a folder, a hub name, or the built-in `jaxvlm:rooms`.

        Raises:
          UserError: it cannot be loaded, or lacks one of Qwen's special tokens.
        """
        # It would say that there is no PyTorch, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        # The Auto class would import torch wherever it is installed.
        from tokenizers import AddedToken
        from transformers import PreTrainedTokenizerFast

        source = str(BUILT_IN.get(name, name))
        try:
            self._fast = PreTrainedTokenizerFast.from_pretrained(source)
        except Exception as error:  # The library raises every kind for a broken file.
            raise UserError(
                f"text.tokenizer={name!r} cannot be loaded ({first_line(error)}); give a folder "
                "with tokenizer.json, a hub name such as 'Qwen/Qwen3-4B-Instruct-2507', or "
                f"one of {sorted(BUILT_IN)}"
            ) from None
        # Qwen3 counts <think> and the like among its plain tokens; only special ones can be split.
        added = self._fast.added_tokens_decoder.values()
        self._fast.backend_tokenizer.add_special_tokens(
            [AddedToken(token.content, special=True, normalized=False) for token in added]
        )
        self.name = name
        self.end_id = self._special("<|im_end|>")
        self.pad_id = self._special("<|endoftext|>")
        self.start_id = self._special("<|im_start|>")
        self.digits = tuple(ids[0] for ids in self.encode("0123456789"))
        self.placeholder_id = len(self._fast)
        self.action_id = self.placeholder_id + 1

    @property
    def rows(self) -> int:
        """Embedding rows a model needs at least: the tokenizer's own and the reserved two."""
        return self.action_id + 1

    def texts(self) -> dict[int, bytes]:
        """The bytes that each token stands for, special ones left out."""
        special = self._fast.added_tokens_decoder
        vocabulary = self._fast.get_vocab().items()
        return {
            index: bytes(_BYTES[character] for character in token)
            for token, index in vocabulary
            if index not in special
        }

    def same_ids(self, other: "Tokenizer") -> bool:
        """Whether every token has the same id in both."""
        return self._fast.get_vocab() == other._fast.get_vocab()

    def _special(self, token: str) -> int:
        index = self._fast.convert_tokens_to_ids(token)
        if index is None or self._fast.convert_ids_to_tokens(index) != token:
            raise UserError(f"the tokenizer {self._fast.name_or_path!r} has no token {token!r}")
        return index

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; control tokens written in a text are plain text."""
        if not texts:
            return []
        batch = self._fast(list(texts), add_special_tokens=False, split_special_tokens=True)
        return batch["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens and surrounding space."""
        own = [int(i) for i in ids if i < self.placeholder_id]
        return self._fast.decode(own, skip_special_tokens=True).strip()

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of any ids, special tokens and space included."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=False)


@functools.cache
def load_tokenizer(name: str) -> Tokenizer:
    """`Tokenizer(name)`, loaded once a process."""
    return Tokenizer(name)
