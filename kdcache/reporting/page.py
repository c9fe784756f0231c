"""A report as one page of HTML that needs nothing beside it, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

from kdcache.rendering import Picture, Section, Text
from kdcache.rendering.escaping import markdown, plain

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="$generator">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$lead
<nav aria-label="Contents"><ul>$contents</ul></nav>
$sections
</main>
</body>
</html>
""")
GENERATOR = "kdcache report"
"""Stands in every report, so that none but a report is replaced by one."""
STYLE = """
:root{--ink:#1f2328;--quiet:#59636e;--line:#d1d9e0;--back:#fff;--band:#f6f8fa;--link:#0a58ca}
@media(prefers-color-scheme:dark){
:root{--ink:#e6e8eb;--quiet:#9aa4af;--line:#353c44;--back:#15181c;--band:#1d2127;--link:#79b0f5}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--back);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:56rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.25rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
h1,h2,h3,p,li{overflow-wrap:anywhere}
p{margin:.5rem 0;max-width:42rem}
a{color:var(--link)}
nav ul{list-style:none;padding:0;margin:1rem 0;display:flex;flex-wrap:wrap;gap:.25rem 1rem}
nav a{display:inline-block;padding:.3rem 0}
.wide{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;font-size:.875rem;line-height:1.4;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}
thead th{color:var(--quiet);font-weight:600;white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:600;min-width:6.5rem}
thead+tbody td{white-space:nowrap}
.figures th:first-child{position:sticky;left:0;background:var(--back)}
.figures td,.figures thead th:not(:first-child){text-align:right;white-space:nowrap}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--band);
padding:.1em .3em;border-radius:.25em;overflow-wrap:anywhere}
figure{margin:1rem 0}
img{display:block;width:100%;max-width:30rem;height:auto}
@media print{main{max-width:none}.wide{overflow:visible}
h2{break-after:avoid}figure{break-inside:avoid}}
"""


@dataclass(frozen=True)
class Page:
    """A report: what it is called, what it is of in a sentence, and its sections.

    It shows itself in a notebook.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]

    def html(self) -> str:
        """The page: one file without scripts that asks nothing of a network."""
        places = list(zip(self.sections, map(_anchor, self.sections), strict=True))
        contents = (f'<li><a href="#{at}">{plain(one.title)}</a></li>' for one, at in places)
        sections = (f'<div id="{at}">{one.html()}</div>' for one, at in places)
        return PAGE.substitute(
            title=plain(self.title),
            generator=GENERATOR,
            style=STYLE,
            lead=Text(self.lead).html(),
            contents="".join(contents),
            sections="\n".join(sections),
        )

    def markdown(self, pictures: str = "pictures") -> str:
        """The same as Markdown, whose pictures are the files that `pictures_of` writes."""
        head = f"<!-- {GENERATOR} -->\n\n# {markdown(self.title)}\n\n{markdown(self.lead)}\n\n"
        return head + "\n\n".join(one.markdown(pictures) for one in self.sections) + "\n"

    @property
    def pictures(self) -> Iterator[Picture]:
        """All that are on it."""
        for section in self.sections:
            yield from section.drawn()

    def _repr_html_(self) -> str:
        sections = "\n".join(section.html() for section in self.sections)
        return f"<h1>{plain(self.title)}</h1>{Text(self.lead).html()}{sections}"


def _anchor(section: Section) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in section.title.lower())


def write_pictures(pictures: Iterable[Picture], folder: Path) -> None:
    """Write pictures into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.svg").write_text(picture.svg, "utf-8")
