"""What a committed notebook shows and says, as text."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import nbformat

from . import ROOT


def outputs_and_prose(name: str) -> tuple[dict[str, str], str]:
    """The text of each code cell's outputs by the cell's id, and all prose."""
    cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
    shown = {
        cell.id: "\n".join(_text(output) for output in cell.get("outputs", [])) for cell in cells
    }
    return shown, "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def _text(output: Any) -> str:
    """An output as text; of one that is an object in plain text, what its HTML says."""
    if "text" in output:
        return str(output["text"])
    data = output.get("data", {})
    plain = str(data.get("text/markdown", data.get("text/plain", "")))
    if not plain.startswith("<") or "text/html" not in data:
        return plain
    without_style = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
    return unescape(re.sub(r"[ \n]*<[^>]*>[ \n]*", "  ", without_style))


def row(text: str, label: str) -> list[float]:
    """All numbers of the rows of a table (pandas breaks wide ones) that begin with the label."""
    found = re.findall(rf"(?m)^{re.escape(label)} {{2,}}([-\d.eE+NnaA ]+?)\s*\\?$", text)
    return [float(number) for part in found for number in part.split()]
