"""HTML and SVG in which every text is escaped: only what `element` made goes into a page as markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Union

# Elements without an end tag in HTML.
_VOID = frozenset({"br", "meta", "col", "hr"})


class Html(str):
    """Markup that is finished: it is not escaped again. Only this module, the style sheet and the script make one."""

    __slots__ = ()


Child = Union[str, "Iterable[Child]", None]
Attribute = str | int | float | bool | None


def element(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: Tag.
        children: Markup as it is, other text escaped, iterables in turn; None is nothing.
        attributes: Names as in Python: a trailing underscore is dropped (`class_`), others become hyphens. None and
            False leave the attribute out, True gives it no value. A viewBox is `viewBox`.
    """
    present = {key: value for key, value in attributes.items() if value is not None and value is not False}
    words = [name, *(_attribute(key, value) for key, value in present.items())]
    opening = f"<{' '.join(words)}>"
    return Html(opening if name in _VOID else f"{opening}{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Html:
    """The children of `element`, without one around them."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child))
        else:
            parts.append(joined(child))
    return Html("".join(parts))


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    return name if value is True else f'{name}="{html.escape(str(value))}"'


def table(
    caption: str, head: Iterable[Child], rows: Iterable[Iterable[Html]], foot: Iterable[Iterable[Html]] = (),
    **attributes: Attribute,
) -> Html:  # fmt: skip
    """A table that scrolls within its own box where it is wider than the page.

    Args:
        caption: What it is, for those who hear it read.
        head: Contents of the column heads, or `th` elements of the caller's own making.
        rows, foot: Cells (`td`, `th`) of each row.
    """
    heads = [cell if isinstance(cell, Html) and cell.startswith("<th") else heading(cell) for cell in head]
    parts = [element("caption", caption), element("thead", element("tr", heads))]
    parts.append(element("tbody", [element("tr", row) for row in rows]))
    lines = [element("tr", row) for row in foot]
    parts.append(element("tfoot", lines) if lines else Html(""))
    # Focusable, so that it can be scrolled with the keyboard.
    box: dict[str, Attribute] = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": caption}
    return element("div", element("table", parts, **attributes), **box)


def heading(content: Child, scope: str = "col", **attributes: Attribute) -> Html:
    """A `th`."""
    return element("th", content, scope=scope, **attributes)


def cell(content: Child, **attributes: Attribute) -> Html:
    """A `td`."""
    return element("td", content, **attributes)


def details(summary: str, *children: Child) -> Html:
    """What is folded away until asked for."""
    return element("details", element("summary", summary), *children)
