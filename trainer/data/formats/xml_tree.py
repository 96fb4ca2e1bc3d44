"""Reads XML annotations as elements that know their line; entities, bombs and outside files are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax import SAXException, SAXParseException, handler

from defusedxml import DefusedXmlException
from defusedxml.sax import parseString

from trainer.data.formats.format import unreadable
from trainer.errors import DataError
from trainer.reading.text_file import printable

_LIMIT_BYTES = 2**30
_MAX_DEPTH = 100


@dataclass
class Element:
    """An XML element."""

    tag: str
    line: int
    """Where it starts, from 1."""
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Returns the text right in the element."""
        return "".join(self.words).strip()

    def first(self, tag: str) -> Element | None:
        """Returns the first child of this tag, None without any."""
        return next((child for child in self.children if child.tag == tag), None)

    def all(self, tag: str) -> Iterator[Element]:
        """Yields the children of this tag."""
        return (child for child in self.children if child.tag == tag)

    def text_of(self, tag: str) -> str:
        """Returns the text of the first child of this tag, '' without any."""
        child = self.first(tag)
        return child.text if child is not None else ""


class _TooDeepError(SAXException):
    pass


class _TreeHandler(handler.ContentHandler):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", 0)]
        self.locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:
        self.locator = locator

    def startElement(self, name: str, attrs: Any) -> None:
        if len(self.open) > _MAX_DEPTH:
            raise _TooDeepError(f"elements in one another, {_MAX_DEPTH} deep")
        element = Element(name, self.locator.getLineNumber(), dict(attrs.items()))
        self.open[-1].children.append(element)
        self.open.append(element)

    def endElement(self, name: str) -> None:
        self.open.pop()

    def characters(self, content: str) -> None:
        self.open[-1].words.append(content)


def read_xml(path: Path) -> Element:
    """Returns the root element of an XML file. Raises DataError, with the line, for what is no XML or tries more."""
    line, seen = 0, ""
    tree = _TreeHandler()
    try:
        with open(path, "rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
        if len(content) > _LIMIT_BYTES:
            seen = f"more than {_LIMIT_BYTES >> 20} MB"
        else:
            parseString(content, tree)
            return tree.open[0].children[0]
    except OSError as error:
        raise unreadable(path, error) from None
    except DefusedXmlException as error:
        seen = f"{type(error).__name__}: entities are not read, as they can name other files or fill the memory"
    except SAXParseException as error:
        line, seen = error.getLineNumber() or 0, error.getMessage()
    except (SAXException, ValueError, LookupError) as error:
        seen = str(error)
    raise DataError(
        f"{printable(path)}{f':{line}' if line else ''} cannot be read as XML",
        seen=seen,
        expected="one file of annotations in XML without entities",
        next_command="correct the file, or export it again",
    )


def number(path: Path, element: Element, text: str | None, what: str) -> float:
    """Returns a number that an element has. Raises DataError that names file and line."""
    try:
        return float(text if text is not None else "")
    except ValueError:
        raise wrong_row(path, element, f"{what}: {text if text is not None else 'nothing'!r}", "a number") from None


def wrong_row(path: Path, element: Element, seen: str, expected: str) -> DataError:
    """Returns the error for a row that cannot be used."""
    return DataError(
        f"{printable(path)}:{element.line}: <{element.tag}> cannot be used",
        seen=seen,
        expected=expected,
        next_command="correct the file, or export it again",
    )
