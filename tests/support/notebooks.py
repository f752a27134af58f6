"""What a committed notebook shows and says, as text."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import nbformat

from . import ROOT


def outputs_and_prose(name: str) -> tuple[dict[str, str], str]:
    """What each code cell has shown by the cell's id, in every form that is text, and all prose."""
    cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
    shown = {
        cell.id: "\n".join(_text(output) for output in cell.outputs)
        for cell in cells
        if cell.cell_type == "code"
    }
    return shown, "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def _text(output: Any) -> str:
    """An output in every form that it has, and what one reads of its HTML; no pictures."""
    if "text" in output:
        return str(output["text"])
    forms = {kind: str(form) for kind, form in output["data"].items() if kind.startswith("text/")}
    html = re.sub(r"<style.*?</style>", "", forms.get("text/html", ""), flags=re.DOTALL)
    return "\n".join([*forms.values(), unescape(re.sub(r"[ \n]*<[^>]*>[ \n]*", "  ", html))])


def answer_and_reason(shown: str) -> str:
    """Of what `reveal` has shown, as `outputs_and_prose` gives it: all but the fold's title."""
    (fold,) = re.findall(r"</summary>(.*?)</details>", shown, re.DOTALL)
    return " ".join(unescape(re.sub("<[^>]+>", "", fold)).split())


def row(text: str, label: str) -> list[float]:
    """All numbers of the rows of a table (pandas breaks wide ones) that begin with the label."""
    found = re.findall(rf"(?m)^{re.escape(label)} {{2,}}([-\d.eE+NnaA ]+?)\s*\\?$", text)
    return [float(number) for part in found for number in part.split()]
