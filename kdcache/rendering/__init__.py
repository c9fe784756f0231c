"""What pages, cards and notebooks are made of: text, tables and pictures, as HTML and as Markdown.

Nothing here knows what is told. A text may hold `code` between backticks, and is escaped otherwise.
"""

from kdcache.rendering.figures import both, show, size
from kdcache.rendering.parts import Part, Picture, Points, Section, Table, Text

__all__ = ["Part", "Picture", "Points", "Section", "Table", "Text", "both", "show", "size"]
