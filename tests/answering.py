"""The answers to a list of records, in their order."""

from jaxvlm.data.sequence import set_key
from jaxvlm.generation.answer import Asked, Group, answers


def answer_records(answerer, records, shown=None):
    """With the images of `shown` instead of their own, where it is given."""
    by_set = {}
    for index, (record, own) in enumerate(zip(records, shown or records, strict=True)):
        group = by_set.setdefault(set_key(own), Group(own, []))
        group.asked.append(Asked(index, index, record))
    found = {each.key: each.text for each in answers(answerer, by_set.values())}
    return [found[index] for index in range(len(records))]
