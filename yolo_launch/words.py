"""Makes words for readers of what programs count."""


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun: 1 thread, 2 threads, 3 loader processes."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
