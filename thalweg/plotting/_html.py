"""The few pieces of HTML that a report is made of; every text is escaped here and nowhere else."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from thalweg.plotting._style import number

_LONGEST_SETTING = 400


class Raw(str):
    """Text that is HTML already."""


def text(value: Any) -> str:
    """A value as text that HTML takes for nothing else."""
    return str(value) if isinstance(value, Raw) else html.escape(str(value), quote=True)


def section(title: str, content: str) -> str:
    """A section with its heading; nothing where there is no content."""
    if not content:
        return ""
    return f'<section id="{title.lower().replace(" ", "-")}">\n<h2>{text(title)}</h2>\n{content}\n</section>'


def paragraphs(texts: Iterable[Any]) -> str:
    """Each text as a paragraph."""
    return "".join(f"<p>{text(one)}</p>" for one in texts)


def bullets(texts: Iterable[Any]) -> str:
    """Texts as a list."""
    return f"<ul>{''.join(f'<li>{text(one)}</li>' for one in texts)}</ul>"


def side_by_side(parts: Iterable[str]) -> str:
    """Parts in two columns where there is room, else below each other."""
    return f'<div class="two">{"".join(parts)}</div>'


def pill(word: str, look: str) -> Raw:
    """A word on a coloured ground: `look` is "good", "bad" or nothing."""
    return Raw(f'<span class="{f"pill {look}".strip()}">{text(word)}</span>')


def image(png: bytes, alt: str) -> str:
    """A picture in the page itself."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}" alt="{text(alt)}">'


def figure(png: bytes, alt: str, caption: str = "", *, wide: bool = False) -> str:
    """A picture on a white card; a wide one scrolls sideways on a narrow screen."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    shown = f'<div class="scroll"><div class="wide">{image(png, alt)}</div></div>' if wide else image(png, alt)
    return f"<figure>{shown}{below}</figure>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Sequence[int] = ()) -> str:
    """A table whose first column names the rows; `numeric` columns are aligned to the right."""
    look = [' class="number"' if place in numeric else "" for place in range(len(columns))]
    head = "".join(f'<th scope="col"{look[i]}>{text(name)}</th>' for i, name in enumerate(columns))
    body = []
    for name, *cells in rows:
        # Narrow screens show each row as a block, in which the name of the column stands beside each cell.
        listed = "".join(
            f'<td{look[i]} data-label="{text(columns[i])}">{text(cell)}</td>' for i, cell in enumerate(cells, start=1)
        )
        body.append(f'<tr><th scope="row">{text(name)}</th>{listed}</tr>')
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def named_table(caption: str, values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    body = "".join(
        f'<tr><th scope="row">{text(str(name).replace("_", " "))}</th><td>{text(setting(value))}</td></tr>'
        for name, value in values.items()
    )
    heading = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<div class="table"><table class="named">{heading}<tbody>{body}</tbody></table></div>'


def setting(value: Any) -> str:
    """A setting as text: short numbers, lists with commas, nothing longer than a few lines."""
    if isinstance(value, bool | str) or value is None:
        shown = str(value)
    elif isinstance(value, Mapping):
        shown = ", ".join(f"{key} = {setting(entry)}" for key, entry in value.items())
    elif isinstance(value, list | tuple):
        shown = ", ".join(setting(entry) for entry in value)
    elif isinstance(value, float | np.floating):
        shown = number(value, 10)
    else:
        shown = str(value)
    return shown if len(shown) <= _LONGEST_SETTING else f"{shown[:_LONGEST_SETTING]}…"
