"""The parts of a page: each is written as HTML and as Markdown, and shows itself in a notebook."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from kdcache.rendering import escaping as to


class Part(Protocol):
    """What a section is made of."""

    def html(self) -> str:
        """The part as HTML that stands by itself."""
        ...

    def markdown(self, pictures: str) -> str:
        """The part as Markdown; the files of pictures lie below `pictures`, a relative folder."""
        ...

    def drawn(self) -> Iterator[Picture]:
        """The pictures in it."""
        ...


class _Undrawn:
    def drawn(self) -> Iterator[Picture]:
        return iter(())


@dataclass(frozen=True)
class Text(_Undrawn):
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f"<p>{to.html(self.text)}</p>"

    def markdown(self, pictures: str) -> str:
        return to.markdown(self.text)


@dataclass(frozen=True)
class Points(_Undrawn):
    """A list of sentences."""

    texts: tuple[str, ...]

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{to.html(text)}</li>" for text in self.texts) + "</ul>"

    def markdown(self, pictures: str) -> str:
        return "\n".join(f"- {to.markdown(text)}" for text in self.texts)


@dataclass(frozen=True)
class Table(_Undrawn):
    """Rows under a head; a head of empty texts is none.

    Attributes:
        head: a text for each column.
        rows: as many texts each.
        figures: whether all columns but the first hold figures, which stand on the right.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: bool = False

    def html(self) -> str:
        kind = ' class="figures"' if self.figures else ""
        head = "".join(f'<th scope="col">{to.html(text)}</th>' for text in self.head)
        top = f"<thead><tr>{head}</tr></thead>" if any(self.head) else ""
        rows = "".join(map(_row, self.rows))
        return f'<div class="wide"><table{kind}>{top}<tbody>{rows}</tbody></table></div>'

    def markdown(self, pictures: str = "") -> str:
        rule = ("---", *("---:" if self.figures else "---" for _ in self.head[1:]))
        rows = [tuple(map(to.cell, row)) for row in (self.head, *self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))

    def turned(self) -> Table:
        """The table with its columns as rows."""
        head, *rows = zip(self.head, *self.rows, strict=True)
        return Table(tuple(head), tuple(map(tuple, rows)))

    def _repr_html_(self) -> str:
        return self.html()


def _row(row: tuple[str, ...]) -> str:
    first, *others = row
    cells = "".join(f"<td>{to.html(text)}</td>" for text in others)
    return f'<tr><th scope="row">{to.html(first)}</th>{cells}</tr>'


def fields(rows: Iterable[tuple[str, str]]) -> Table:
    """A table of a name and a value each."""
    return Table(("", ""), tuple(rows))


@dataclass(frozen=True)
class Picture:
    """A drawing, as SVG.

    Attributes:
        name: of its file, without an ending.
        svg: the drawing; it is shown as an image, so nothing in it runs.
        alt: what it shows, in words and figures.
    """

    name: str
    svg: str
    alt: str

    def html(self) -> str:
        data = base64.b64encode(self.svg.encode()).decode()
        source = f"data:image/svg+xml;base64,{data}"
        return f'<figure><img src="{source}" alt="{to.plain(self.alt)}"></figure>'

    def markdown(self, pictures: str) -> str:
        alt = self.alt.replace("[", "(").replace("]", ")")
        return f"![{to.markdown(alt)}]({pictures}/{self.name}.svg)"

    def drawn(self) -> Iterator[Picture]:
        yield self

    def _repr_html_(self) -> str:
        return self.html()


@dataclass(frozen=True)
class Section:
    """Parts under a title."""

    title: str
    parts: tuple[Part, ...]
    level: int = 2

    def html(self) -> str:
        head = f"<h{self.level}>{to.html(self.title)}</h{self.level}>"
        return f"<section>{head}" + "\n".join(part.html() for part in self.parts) + "</section>"

    def markdown(self, pictures: str) -> str:
        head = f"{'#' * self.level} {to.markdown(self.title)}"
        return "\n\n".join([head, *(part.markdown(pictures) for part in self.parts)])

    def drawn(self) -> Iterator[Picture]:
        for part in self.parts:
            yield from part.drawn()
