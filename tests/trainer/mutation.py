"""Inputs as hands, editors, shells and disks spoil them: edits of good files, and noise."""

from __future__ import annotations

import random
from collections.abc import Sequence

WORDS = [
    *(b"", b" ", b"\n", b"\r\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"#", b"'", b'"'),
    *(b": ", b"- ", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"!!", b"<<: ", b"|\n", b"? ", b"---\n", b"!!int ", b"%"),
    *(b"0", b"1", b"-1", b"1e309", b"nan", b"inf", b"-.inf", b"0x10", b"1_0", b"9" * 50, b"1e-400", b"1.0021", b"012"),
    *(b"yes", b"null", b"~", b"names", b"nc", b"train", b"path", b"../", b"/", b"\\", b"*", b"images", b".jpg"),
    *(
        b"\xe7\xba\xa2",
        b"\xe9",
        b"\xff\xfe\xe9\0",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\x00",
        b"\xe2\x80\xa8",
        b"kpt_shape",
    ),
    *(b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"<html>", b'{"images": [', b"II*\0"),
]
"""What a spoiled file may contain anywhere."""


def spoiled(seed: int, samples: Sequence[bytes]) -> bytes:
    """One input: a sample after a few edits, seldom noise or an empty file. The same for the same seed."""
    chance = random.Random(seed)
    kind = chance.random()
    if kind < 0.04:
        return chance.randbytes(chance.choice((0, 1, 3, 40, 700)))
    if kind < 0.10:
        return b"".join(chance.choice(WORDS) for _ in range(chance.randrange(12)))
    content = bytearray(chance.choice(samples))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        _edit(chance, content)
    if kind > 0.97:
        encoding = chance.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig"))
        return bytes(content).decode("latin-1").encode(encoding)
    return bytes(content)


def _edit(chance: random.Random, content: bytearray) -> None:
    """One edit in place: flip, cut, insert a word, repeat, swap, or leave out a line."""
    at = chance.randrange(len(content) + 1)
    length = chance.choice((1, 1, 2, 4, 16, 200))
    what = chance.randrange(7)
    if what == 0 and at < len(content):
        content[at] ^= 1 << chance.randrange(8)
    elif what == 1:
        del content[at : at + length]
    elif what == 2:
        content[at:at] = chance.choice(WORDS)
    elif what == 3:
        content[at : at + length] = chance.choice(WORDS)
    elif what == 4:
        content[at:at] = content[at : at + length] * chance.choice((1, 2, 30))
    elif what == 5:
        lines = content.split(b"\n")
        line = chance.randrange(len(lines))
        lines.insert(chance.randrange(len(lines) + 1), lines[line])
        if chance.random() < 0.5:
            lines.pop(line)
        content[:] = b"\n".join(lines)
    else:
        del content[chance.randrange(len(content) + 1) :]
