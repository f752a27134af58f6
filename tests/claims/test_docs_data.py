"""docs/data.md: its blocks run in their order, and print what stands below them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from support import ROOT
from support.judges import tiny_config, tiny_tokenizer
from support.models import language_model
from support.tokenizers import with_chat_template
from transformers import BertModel

from rlhf_tutorial.rows import EXTENSIONS, KEYS

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.M | re.S)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_the_blocks_print_what_the_page_says(
    tmp_path: Path, monkeypatch: Any, tokenizer: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    language_model("llama", max_position_embeddings=256).save_pretrained("policy")
    with_chat_template(tokenizer, TEMPLATE).save_pretrained("policy")
    torch.manual_seed(0)
    BertModel(tiny_config()).save_pretrained("judge-base")
    tiny_tokenizer().save_pretrained("judge-base")
    capsys.readouterr()
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```python") >= 7
    names: dict[str, Any] = {}
    for code, expected in blocks:
        exec(compile(code, "data.md", "exec"), names)
        assert capsys.readouterr().out == expected


def test_the_tables_name_every_column_and_every_kind_of_file() -> None:
    named = set(re.findall(r"`([\w.]+)`", PAGE))
    assert {*KEYS, "completion", "label", "rejected"} <= named
    assert {e.removesuffix(".gz") for e in EXTENSIONS} <= named
