"""What kind of question a question is."""

# SQA3D's types (arXiv 2210.07474), by how the lower-cased question begins, in this order.
TYPES = ("what", "is", "how", "can", "which")
OTHERS = "others"


def question_type(question: str) -> str:
    """SQA3D's type of a question, of any data set."""
    begins = question.strip().lower()
    return next((name for name in TYPES if begins.startswith(name)), OTHERS)
