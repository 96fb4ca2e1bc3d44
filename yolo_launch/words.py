"""Makes words for readers of what programs count."""


def counted(count: int, noun: str) -> str:
    """Returns a number with its noun: 1 thread, 2 threads, 3 loader processes."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def fitted(text: str, columns: int) -> str:
    """Returns the text on one line of a terminal, its middle cut out: a line that wraps cannot be drawn over."""
    room = max(10, columns - 1)
    if len(text) <= room:
        return text
    tail = (room - 3) // 2
    return f"{text[: room - 3 - tail]}...{text[-tail:]}"
