"""The card of symbols, docs/symbols.md: a place to link to for each, and which a text uses."""

from __future__ import annotations

import re
from collections.abc import Collection

# What dresses a letter: `\hat A`, `\mathcal L`, `\text{old}`.
_DRESSED = r"\\(?:hat|bar|mathcal|mathrm|text|operatorname)\s*(?:\{[^{}]*\}|\\?\w)"
_INDEX = rf"\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|{_DRESSED}|\\[a-zA-Z]+|[\w*]"
_SYMBOL = re.compile(rf"(?:{_DRESSED}|\\[a-zA-Z]+|[a-zA-Z])(?:\s*[_^](?:{_INDEX}))*")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", re.DOTALL)
_ASIDE = re.compile(r"```.*?```|`[^`\n]*`|\\(?:begin|end)\{\w+\}", re.DOTALL)
_ROW = re.compile(r"^\| (?:([\db, ]+) \| )?(\$[^|]+?\$) \|", re.M)


def first_uses(text: str, known: Collection[str]) -> list[str]:
    """Of a text's formulas the symbols that are known, in the order in which they come.

    A Greek or dressed letter with an index that is not known counts as the one without:
    `\\mathcal L_1` as `\\mathcal L`. A Latin one is another symbol: `d_i` is no `d`.
    """
    found = []
    for displayed, inline in _FORMULA.findall(_ASIDE.sub("", text)):
        for symbol in _SYMBOL.findall(displayed or inline):
            whole = plain(symbol)
            bare = re.split("[_^]", whole)[0] if whole[0] == "\\" else whole
            found += [s for s in (whole, bare) if s in known][:1]
    return list(dict.fromkeys(found))


def read_card(page: str, notebook: str) -> dict[str, tuple[str, str]]:
    """The symbols of the card that a notebook, named by its number as "03b", may use.

    Returns:
        By symbol: how it is written, and its anchor on the card. What the card says for a single
        notebook goes before what it says for all.
    """
    card, notebook = {}, notebook.lstrip("0")
    for numbers, symbols in _ROW.findall(page):
        if not numbers or notebook in numbers.split(", "):
            for tex in re.findall(r"\$([^$]+)\$", symbols):
                card[_key(tex)] = (tex, _anchor(tex, numbers))
    return card


def with_anchors(page: str) -> str:
    """The card with a place to link to at each of its symbols."""

    def placed(row: re.Match[str]) -> str:
        numbers, symbols = row[1] or "", row[2]
        spans = re.sub(r"\$([^$]+)\$", lambda m: f"[{m[0]}]{{#{_anchor(m[1], numbers)}}}", symbols)
        return row[0].replace(symbols, spans)

    return _ROW.sub(placed, page)


def plain(tex: str) -> str:
    """A symbol without what may be written or left out: spaces and braces."""
    return re.sub(r"[\s{}]", "", tex)


def _key(tex: str) -> str:
    return plain(re.sub(r"\\[lr]vert\b", "", tex))


def _anchor(tex: str, numbers: str) -> str:
    said = re.sub(r"[A-Z]", lambda m: f" big {m[0].lower()}", tex.replace("*", " star "))
    return "-".join(re.findall(r"\w+", f"symbol {numbers} {said}".replace("_", " ")))
