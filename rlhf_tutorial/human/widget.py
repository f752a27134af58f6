"""Labelling in a notebook, with core ipywidgets alone: what versions 7.7 and 8 have in common."""

from __future__ import annotations

from html import escape
from typing import Any

from ..errors import TutorialError, reason
from .agreement import report
from .labelling import Session
from .terminal import label_in_terminal

DOUBLE_CLICK = 0.3
"""Seconds. A choice that comes sooner was the second click of two, and nobody has read the pair."""

# Grey on whatever is behind it, and letters as the notebook has them: both themes, any front end.
_LETTERS = "color: var(--jp-content-font-color1, inherit); line-height: 1.45; "
_BOX = (
    "border: 1px solid rgba(128, 128, 128, 0.5); border-radius: 4px; padding: 8px 12px; "
    "background: rgba(128, 128, 128, 0.08); white-space: pre-wrap; overflow-wrap: anywhere; "
)


def start_labelling(session: Session) -> Any:
    """Start or go on with a session: buttons in a notebook, questions in a terminal.

    Returns:
        The widget, to be shown as a cell's last line; None after questions in a terminal.
    """
    try:
        from IPython import get_ipython

        in_notebook = hasattr(get_ipython(), "kernel")
        import ipywidgets  # noqa: F401
    except ImportError:
        in_notebook = False
    if in_notebook:
        return LabellingWidget(session).box
    return label_in_terminal(session)


class LabellingWidget:
    """Two answers side by side, below each other where that is too narrow, and five buttons."""

    def __init__(self, session: Session) -> None:
        import ipywidgets as widgets

        self.session = session
        self.prompt, self.status = widgets.HTML(), widgets.HTML()
        grows = widgets.Layout(flex="1 1 auto")  # so that both buttons below are on one line
        self.texts = {side: widgets.HTML(layout=grows) for side in ("left", "right")}
        self.buttons = {
            what: widgets.Button(
                description=words, tooltip=tooltip, layout=widgets.Layout(width=width)
            )
            for what, words, tooltip, width in (
                ("left", "Left is better", "Choose the answer on the left", "auto"),
                ("right", "Right is better", "Choose the answer on the right", "auto"),
                ("tie", "Tie", "Neither is better", "80px"),
                ("skip", "Skip", "Leave this pair out", "80px"),
                ("back", "Back", "Take the last choice back", "80px"),
            )
        }
        for what, button in self.buttons.items():
            button.on_click(lambda _, what=what: self._clicked(what))
        cards = [
            widgets.VBox(
                [self.texts[side], self.buttons[side]],
                layout=widgets.Layout(flex="1 1 260px", margin="0 8px 8px 0", min_width="0"),
            )
            for side in ("left", "right")
        ]
        self.answers = widgets.HBox(cards, layout=widgets.Layout(flex_flow="row wrap"))
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="120px"))
        row = widgets.Layout(flex_flow="row wrap", align_items="center")
        others = [self.buttons[what] for what in ("tie", "skip", "back")]
        self.box = widgets.VBox(
            [
                self.prompt,
                self.answers,
                widgets.HBox([*others, self.progress, self.status], layout=row),
            ],
            layout=widgets.Layout(max_width="1000px"),
        )
        self._show()

    def _clicked(self, what: str) -> None:
        try:
            if what == "back":
                self.session.back()
            elif self.session.current is None or self.session.seconds < DOUBLE_CLICK:
                return
            else:
                self.session.choose(what)
        except (TutorialError, OSError) as error:
            told = str(error) if isinstance(error, TutorialError) else reason(error)
            self.status.value = _html(f"Not written down ({told}). Your earlier labels are safe.")
            return
        self._show()

    def _show(self) -> None:
        session, shown = self.session, self.session.current
        self.progress.max, self.progress.value = max(1, session.total), session.done
        self.status.value = _html(f"{session.done} of {session.total}")
        self.buttons["back"].disabled = not session.labels
        for what in ("tie", "skip"):
            self.buttons[what].disabled = shown is None
        self.answers.layout.display = "none" if shown is None else None
        if shown is None:
            self.prompt.value = _html(
                f"Done, and kept in {session.path}.\n{report(session.labels)}"
            )
            return
        self.prompt.value = _html(shown.prompt, "font-weight: 600; ")
        for side, text in (("left", shown.left), ("right", shown.right)):
            title = f'<div style="{_LETTERS}opacity: 0.75">{side.capitalize()}</div>'
            self.texts[side].value = title + _html(text.strip() or "(empty)", _BOX)


def _html(text: str, style: str = "white-space: pre-wrap; ") -> str:
    """The text as it is, whatever it holds."""
    return f'<div style="{_LETTERS}{style}">{escape(text)}</div>'
