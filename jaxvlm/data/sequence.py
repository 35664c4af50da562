r"""The one sequence layout: training, evaluation and asking all build their tokens here.

    plain   {situation }{question}\n <visual> \n{answer}<|im_end|>
    chat    <|im_start|>user\n{situation }{question}\n <visual> <|im_end|>\n
            <|im_start|>assistant\n{answer}<|im_end|>

`<visual>` stands for the geometry tokens and latents of the sample's image set. Where the answer is
an action, the token `<action>` stands in front of it.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float, Int32

from jaxvlm.data.boxes import action_numbers
from jaxvlm.data.record import Record, scene_of
from jaxvlm.data.tokenizer import Tokenizer
from jaxvlm.errors import UserError

TEMPLATES = ("plain", "chat")
# Records that are tokenised together.
_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Sample:
    """A tokenised record, before its visual tokens are known.

    Attributes:
      before: ids in front of the visual tokens.
      after: ids between the visual tokens and the answer.
      answer: ids of the answer and its `<|im_end|>`; empty where the record has no answer.
      record: index of the record it was made from.
      set_id: index of the image set it asks about.
      views: images of the set.
      has_geometry: the record tells where the cameras stood or what they are.
      is_action: the answer is an action, which is stated in the frame of the first view.
      scene: the scene it is of, or its first image where the record does not tell.
      box: what the action head learns of an action: centre, extent and normal in the first camera's
        frame, in metres; None where there is none.
    """

    before: Int32[np.ndarray, "..."]
    after: Int32[np.ndarray, "..."]
    answer: Int32[np.ndarray, "..."]
    record: int
    set_id: int
    views: int = 1
    has_geometry: bool = False
    is_action: bool = False
    scene: str = ""
    box: Float[np.ndarray, "9"] | None = None

    def length(self, visual: int) -> int:
        """Tokens in a row, with `visual` visual tokens; the end token is a label only."""
        return len(self.before) + visual + len(self.after) + max(len(self.answer) - 1, 0)


def tokenize(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    template: str,
    max_length: int,
    max_visual: int,
) -> tuple[list[Sample], int]:
    """Tokenises records; a text that is too long loses the end of its question.

    Args:
      records: the records, gone through once.
      tokenizer: the tokenizer.
      template: "plain" or "chat".
      max_length: tokens a sample may have, visual tokens included.
      max_visual: the most visual tokens a sample can have.

    Returns:
      The samples in the records' order and the number of shortened questions.

    Raises:
      UserError: an unknown template, or a record whose answer and visual tokens alone are longer
        than `max_length`.
    """
    if template not in TEMPLATES:
        raise UserError(f"text.template is {template!r}; expected one of {TEMPLATES}")
    (newline,) = tokenizer.encode(["\n"])
    head, after = [], newline
    if template == "chat":
        user, assistant = tokenizer.encode(["user\n", "assistant\n"])
        start, end = [tokenizer.start_id], [tokenizer.end_id]
        head, after = start + user, end + newline + start + assistant
    set_ids: dict[bytes, int] = {}
    samples, shortened = [], 0
    for index, (record, question, answer) in enumerate(_encoded(records, tokenizer)):
        answer = [*answer, tokenizer.end_id] if record.answer else []
        behind = [*after, tokenizer.action_id] if record.is_action else after
        room = max_length - max_visual - len(head) - len(behind) - max(len(answer) - 1, 0)
        if room <= len(newline):
            raise UserError(
                f"{record.origin}: the answer ({len(answer)} tokens) and {max_visual} visual "
                f"tokens leave no room for the question within text.max_length={max_length}; set "
                f"it to {_enough(len(answer) + max_visual)} or more"
            )
        if len(question) > room:
            question = question[: room - len(newline)] + newline
            shortened += 1
        set_id = set_ids.setdefault(set_key(record), len(set_ids))
        before, tail, labels = (np.asarray(x, np.int32) for x in (head + question, behind, answer))
        learns = record.action is not None and record.answer
        box = action_numbers(record.learnt_action()) if learns else None
        samples.append(
            Sample(
                before,
                tail,
                labels,
                index,
                set_id,
                views=len(record.images),
                has_geometry=record.geometry is not None,
                is_action=record.is_action,
                scene=scene_of(record),
                box=box,
            )
        )
    return samples, shortened


def _enough(tokens: int) -> int:
    """A round length that leaves room for a question."""
    return -(-(tokens + 64) // 64) * 64


def _encoded(
    records: Iterable[Record], tokenizer: Tokenizer
) -> Iterator[tuple[Record, list[int], list[int]]]:
    """Records with the ids of question and answer; many at a time, for that is much faster."""
    rest = iter(records)
    while batch := list(itertools.islice(rest, _BATCH)):
        questions = tokenizer.encode([_question(record) + "\n" for record in batch])
        answers = tokenizer.encode([record.answer for record in batch])
        yield from zip(batch, questions, answers, strict=True)


def set_key(record: Record) -> bytes:
    """What questions of one image set share: images, and geometry measured and read alike."""
    parts = sorted((record.geometry or {}).items())
    geometry = [(name, value.tobytes()) for name, value in parts]
    key = repr((record.images, geometry, record.image_size, record.up))
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _question(record: Record) -> str:
    return f"{record.situation} {record.question}" if record.situation else record.question


def prompt(
    sample: Sample, visual: Int32[np.ndarray, "M"], placeholder: int
) -> tuple[Int32[np.ndarray, "T"], Int32[np.ndarray, "T"]]:
    """Everything in front of the answer.

    Args:
      sample: the tokenised record.
      visual: which visual vectors to insert.
      placeholder: the id that stands in their place.

    Returns:
      `tokens` and `visual_index` (-1 where text stands).
    """
    text = np.full(len(sample.before), -1, np.int32), np.full(len(sample.after), -1, np.int32)
    tokens = [sample.before, np.full(len(visual), placeholder, np.int32), sample.after]
    return np.concatenate(tokens), np.concatenate([text[0], visual.astype(np.int32), text[1]])
