"""What the audit of a file found."""

import dataclasses
from collections import Counter

from jaxvlm.data.audit.checks import ERROR, Problem
from jaxvlm.data.records import RecordFile


@dataclasses.dataclass
class Findings:
    """What the audit of one file found.

    Attributes:
      file: the file.
      rows: its records.
      problems: of each record that has any, by its index; those of the whole file under -1.
      question_ids: the distinct ones, hashed.
      scenes: scene ids, each with the index of its first record.
      tasks: how many records each task has.
      images: of each image path that was looked at: size in bytes and time of change (None where
        it does not exist), to know later whether it is still the same.
      same: of each record that says the same as one before, the index of the first that does.
    """

    file: RecordFile
    rows: int
    problems: dict[int, list[Problem]]
    question_ids: set[int]
    scenes: dict[str, int]
    tasks: Counter[str]
    images: dict[str, tuple[int, int] | None]
    same: dict[int, int] = dataclasses.field(default_factory=dict)

    def counts(self) -> Counter:
        """Findings of each check."""
        return Counter(p.check for found in self.problems.values() for p in found)

    def bad(self) -> dict[int, Problem]:
        """The first error of each record that has one, but of equal records one good one stays."""
        bad: dict[int, Problem] = {}
        again: dict[int, Problem] = {}
        for index, found in self.problems.items():
            errors = [p for p in found if p.level == ERROR]
            if index >= 0 and errors:
                only = all(p.check == "duplicate-row" for p in errors)
                # Where no answer is needed, what else is wrong must be known.
                first = min(errors, key=lambda p: p.check == "answer-empty")
                (again if only else bad)[index] = first
        stands = {self.same[index] for index in again} - bad.keys()
        for index, problem in sorted(again.items()):
            if self.same[index] in stands:
                bad[index] = problem
            stands.add(self.same[index])
        return dict(sorted(bad.items()))

    def add(self, index: int, check: str, text: str, level: str = ERROR) -> None:
        """Adds a finding about a record."""
        origin = self.file.items.origin(index)
        self.problems.setdefault(index, []).append(Problem(check, level, f"{origin}: {text}"))
