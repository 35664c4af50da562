"""Mending record files: what can be repaired is, other records with errors are left out."""

from collections import Counter
from pathlib import Path

import numpy as np

from jaxvlm.data.audit.checks import CHECKS, ERROR, check_record
from jaxvlm.data.audit.duplicates import row_key
from jaxvlm.data.audit.findings import Findings
from jaxvlm.data.items import RecordError
from jaxvlm.data.record import Record, parse_record
from jaxvlm.data.records import moved_entry, record_writer
from jaxvlm.errors import UserError

# What rows share is no single row's fault: the first of equals stays, a shared room calls for
# another split.
_NOT_THE_ROWS = {"duplicate-row", "scene-in-both"}
# A rotation further off than this was never one.
_NEARLY = 0.1


def mend(findings: Findings, destination: Path) -> tuple[int, Counter, Counter]:
    """Writes a file's records without what the audit found.

    Fields that jaxvlm does not know are kept. Rotations that are nearly orthonormal, histograms
    that can be scaled and normals of another length are repaired; every other record with an error
    and every duplicate without a question_id of its own is left out.

    Returns:
      Records written; repairs by check; dropped records by check.
    """
    repaired, dropped = Counter(), Counter()
    rows: dict[bytes, set[str]] = {}
    written = 0
    with record_writer(destination) as write:
        for index in range(len(findings.file)):
            found = findings.problems.get(index, [])
            errors = {p.check for p in found if p.level == ERROR} - _NOT_THE_ROWS
            if errors <= _REPAIRS.keys():
                entry = findings.file.items.entry(index)
                for check in errors:
                    _REPAIRS[check](entry)
                record, wrong = _judged(entry, findings.file.items.origin(index))
                # The first good row of those that are the same stays.
                ids = rows.setdefault(row_key(record), set()) if not wrong else set()
                if ids and record.question_id in {*ids, ""}:
                    wrong = "duplicate-row"
            else:
                wrong = next(check for check in CHECKS if check in errors - _REPAIRS.keys())
            if wrong:
                dropped[wrong] += 1
                continue
            repaired.update(errors)
            ids.add(record.question_id)
            written += 1
            write(moved_entry(entry, findings.file.path, destination))
        if not written:
            raise UserError(
                f"{destination}: nothing would be left; every record of {findings.file.path} fails "
                f"a check ({', '.join(dropped)})"
            )
    return written, repaired, dropped


def _judged(entry: dict, origin: str) -> tuple[Record | None, str | None]:
    """The record, and the check that it still fails."""
    try:
        record = parse_record(entry, origin)
    except RecordError as error:
        return None, error.check
    errors = (p.check for p in check_record(record) if p.level == ERROR)
    # A file without answers is one to predict.
    return record, next((check for check in errors if check != "answer-empty"), None)


def _nearest_rotations(entry: dict) -> None:
    token = entry["geom_token"]
    matrices = np.asarray(token["R"], np.float64).reshape(-1, 3, 3)
    left, _, right = np.linalg.svd(matrices)
    rotations = left @ right
    if np.abs(rotations - matrices).max() < _NEARLY and (np.linalg.det(rotations) > 0).all():
        token["R"] = rotations.reshape(-1, 9).round(6).tolist()


def _scaled_histograms(entry: dict) -> None:
    token = entry["geom_token"]
    counts = np.asarray(token["depth_hist"], np.float64)
    total = counts.sum(-1, keepdims=True)
    if (counts >= 0).all():
        token["depth_hist"] = (counts / np.where(total > 0, total, 1)).round(6).tolist()


def _unit_normal(entry: dict) -> None:
    normal = np.asarray(entry["action_json"]["normal"], np.float64)
    length = np.linalg.norm(normal)
    if length > 1e-6:
        entry["action_json"]["normal"] = (normal / length).round(6).tolist()


_REPAIRS = {
    "pose-not-orthonormal": _nearest_rotations,
    "depth-histogram": _scaled_histograms,
    "action-normal": _unit_normal,
}
