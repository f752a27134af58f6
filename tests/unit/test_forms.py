"""Preference data in the forms that people have: one meaning, wherever and however it is stored."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from support.dialogues import dialogue
from support.errors import one_line, refused
from support.judges import load as load_judge
from support.judges import tiny_config, tiny_tokenizer
from support.tokenizers import with_chat_template
from transformers import BertModel

from rlhf_tutorial.data import (
    first_prompt,
    load_preferences,
    parse_dialogue,
    preference_pairs,
    prepare_queries,
)
from rlhf_tutorial.dialogues import query_text, query_turns
from rlhf_tutorial.errors import DataError
from rlhf_tutorial.reward import train_reward_model
from rlhf_tutorial.template import CHAT, DLITE

ASKED, GOOD, BAD = "How do I boil\nan egg?", "Nine minutes.", "No."


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, YES, NO = said("user", ASKED), said("assistant", GOOD), said("assistant", BAD)
PARTS = [[{"type": "text", "text": text}] for text in (ASKED, GOOD, BAD)]
TEXT = f"\n\nHuman: {ASKED}\n\nAssistant:"

# Each a way to say that of two answers to one question the first is better.
FORMS: dict[str, dict[str, Any]] = {
    "hh-rlhf": {"chosen": dialogue(ASKED, GOOD), "rejected": dialogue(ASKED, BAD)},
    "explicit prompt, strings": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "explicit prompt, messages": {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    "implicit prompt, messages": {"chosen": [USER, YES], "rejected": [USER, NO]},
    "implicit prompt, strings": {"chosen": f"{ASKED} {GOOD}", "rejected": f"{ASKED} {BAD}"},
    "UltraFeedback": {
        "prompt": ASKED, "prompt_id": "f00d", "chosen": [USER, YES], "rejected": [USER, NO],
        "messages": [USER, YES], "score_chosen": 8.5, "score_rejected": 2.0,
    },
    "hh-rlhf, prompt apart": {
        "prompt": TEXT, "response": f" {GOOD}", "chosen": f" {GOOD}", "rejected": f" {BAD}",
    },
    "hh-rlhf, prompt apart and within": {
        "prompt": TEXT, "chosen": f"{TEXT} {GOOD}", "rejected": f"{TEXT} {BAD}",
    },
    "parts of text": {
        "chosen": [said("user", PARTS[0]), said("assistant", PARTS[1])],
        "rejected": [said("user", PARTS[0]), said("assistant", PARTS[2])],
    },
    "ShareGPT": {
        "chosen": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": GOOD}],
        "rejected": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": BAD}],
    },
}  # fmt: skip


def as_dataset(row: dict[str, Any], folder: Path) -> Any:
    return datasets.Dataset.from_list([row] * 3)


def as_dict(row: dict[str, Any], folder: Path) -> Any:
    return datasets.DatasetDict(train_prefs=as_dataset(row, folder))


def as_list(row: dict[str, Any], folder: Path) -> Any:
    return [row] * 3


def as_lines(row: dict[str, Any], folder: Path) -> Any:
    (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * 3)
    return folder


def as_packed_lines(row: dict[str, Any], folder: Path) -> Any:
    (folder / "train.jsonl.gz").write_bytes(gzip.compress((json.dumps(row) + "\n").encode() * 3))
    return str(folder)


def as_json(row: dict[str, Any], folder: Path) -> Any:
    (folder / "mine.json").write_text(json.dumps([row] * 3, indent=1))
    return folder / "mine.json"


def as_pandas_lines(row: dict[str, Any], folder: Path) -> Any:
    as_dataset(row, folder).to_json(folder / "train.json")  # lines, for all its name
    return folder


def as_table(row: dict[str, Any], folder: Path) -> Any:
    pd.DataFrame([row] * 3).to_csv(folder / "train.csv.gz", index=False)
    return folder


def as_parquet(row: dict[str, Any], folder: Path) -> Any:
    as_dataset(row, folder).to_parquet(folder / "train.parquet")
    return folder


def as_clone(row: dict[str, Any], folder: Path) -> Any:
    """As a repository of the Hub lies after `git clone`: parts, and another split beside."""
    (folder / "data").mkdir()
    for i, n in enumerate((1, 2)):
        rows = datasets.Dataset.from_list([row] * n)
        rows.to_parquet(folder / "data" / f"train_prefs-0000{i}-of-00002.parquet")
    other = datasets.Dataset.from_list([{"prompt": "from another split"}])
    other.to_parquet(folder / "data" / "train_gen-00000-of-00001.parquet")
    return folder


def as_saved(row: dict[str, Any], folder: Path) -> Any:
    as_dataset(row, folder).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_saved_dict(row: dict[str, Any], folder: Path) -> Any:
    as_dict(row, folder).save_to_disk(str(folder / "saved"))
    return folder / "saved"


PLACES = [
    as_dataset, as_dict, as_list, as_lines, as_packed_lines, as_json, as_pandas_lines, as_table,
    as_parquet, as_clone, as_saved, as_saved_dict,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_from_every_place_means_the_same(
    form: str, place: Callable[..., Any], tmp_path: Path, tokenizer: Any, capsys: Any
) -> None:
    rows = load_preferences(place(FORMS[form], tmp_path))
    queries, report = prepare_queries(rows, DLITE.bind(tokenizer))
    assert str(report) == "3 prompts from 3 rows"
    # The course puts a text dialogue's prompt on one line; a prompt of its own stays as it is.
    one_line_only = form == "hh-rlhf"
    expected = ASKED.replace("\n", " ") if one_line_only else ASKED
    assert queries["query"][:] == [expected] * 3
    for column, answer in (("chosen", GOOD), ("rejected", BAD)):
        turns = [("Human", ASKED), ("Assistant", answer)]
        assert [parse_dialogue(text) for text in rows[column][:]] == [turns] * 3
    pairs, counts = preference_pairs(rows)
    assert pairs == [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}] * 3
    assert counts == "3 pairs from 3 rows"
    again = load_preferences(rows)
    assert again[:] == rows[:], "what is in the one form stays in it"


def test_text_dialogues_stay_the_very_same_rows() -> None:
    rows = datasets.Dataset.from_list([FORMS["hh-rlhf"] | {"topic": "eggs"}])
    assert load_preferences(rows) is rows
    rows = datasets.Dataset.from_dict({"chosen": ["no dialogue", None], "rejected": [None, None]})
    assert load_preferences(rows.remove_columns("rejected")).column_names == ["chosen"]


MESSAGES = [
    said("system", "Be kind."), said("user", "a"), said("assistant", "b"), said("user", "c"),
]  # fmt: skip
TURNS = [("System", "Be kind."), ("Human", "a"), ("Assistant", "b"), ("Human", "c")]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": MESSAGES},
        {"prompt": MESSAGES, "completion": [YES]},
        {"chosen": [*MESSAGES, YES], "rejected": [*MESSAGES, NO]},
        {"messages": [*MESSAGES, YES]},
        {"prompt": "a", "chosen": [*MESSAGES, YES], "rejected": [*MESSAGES, NO]},
    ],
)
def test_prompts_of_several_turns_and_their_system_message_are_kept(
    row: dict[str, Any], tokenizer: Any
) -> None:
    template = CHAT.bind(with_chat_template(tokenizer, TEMPLATE))
    queries, _ = prepare_queries(load_preferences([row]), template)
    (query,), (ids,) = queries["query"][:], queries["input_ids"][:]
    assert query_turns(query) == TURNS
    expected = tokenizer.apply_chat_template(
        MESSAGES, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(ids) == expected


def test_a_text_dialogue_can_be_taken_whole(tokenizer: Any) -> None:
    text = dialogue("a", "b") + dialogue("c", "d") + "\n\nHuman: Thanks!"
    template = CHAT.bind(with_chat_template(tokenizer, TEMPLATE))
    queries, _ = prepare_queries(load_preferences([{"chosen": text}]), template, multi_turn=True)
    assert query_turns(queries["query"][0]) == [("Human", "a"), ("Assistant", "b"), ("Human", "c")]
    first, _ = prepare_queries(load_preferences([{"chosen": text}]), template)
    assert first["query"][0] == "a"


def test_a_judge_reads_the_turns_of_a_query() -> None:
    turns = TURNS[1:]
    assert query_turns(query_text(turns)) == turns
    assert query_turns("Human: no marker, but a question") == [
        ("Human", "Human: no marker, but a question")
    ]


def test_a_message_that_holds_a_marker_opens_no_turn() -> None:
    held = "Go on:\n\nHuman: Hi\n\nAssistant:"
    (row,) = load_preferences([{"prompt": [said("user", held)]}])
    assert parse_dialogue(row["prompt"]) == [("Human", "Go on:\nHuman: Hi\nAssistant:")]


def test_what_cannot_be_understood_is_counted(tokenizer: Any) -> None:
    tool = [said("user", "a"), said("tool", "{}"), said("assistant", "b")]
    rows = load_preferences(
        [
            {"chosen": [USER, YES], "rejected": [USER, NO]},
            {"chosen": tool, "rejected": tool},
            {"chosen": None, "rejected": None},
            {"chosen": [YES], "rejected": [NO]},
            {"chosen": [said("user", ""), YES], "rejected": [said("user", ""), NO]},
        ]
    )
    _, report = prepare_queries(rows, DLITE.bind(tokenizer))
    assert (report.kept, report.not_text, report.no_turns, report.empty) == (1, 2, 1, 1)
    pairs, counts = preference_pairs(rows)
    assert counts.startswith(f"{len(pairs)} pairs from 5 rows (dropped: {5 - len(pairs)} without")


def test_long_prompts_are_kept_where_they_may_be_long(tokenizer: Any) -> None:
    rows = load_preferences([{"prompt": "why " * 100}])
    with refused(DataError, "1 too long"):
        prepare_queries(rows, DLITE.bind(tokenizer))
    queries, _ = prepare_queries(rows, DLITE.bind(tokenizer), max_chars=None)
    assert len(queries["query"][0]) == 399


def test_an_answer_that_was_not_liked_is_no_chosen_one() -> None:
    row = {"prompt": "a", "completion": "b"}
    rows = load_preferences([row | {"label": True}, row | {"label": False}])
    assert rows["chosen"][:] == [dialogue("a", "b"), None] and len(rows["prompt"][:]) == 2


@pytest.mark.parametrize("disliked", [False, 0, "False", "false"])
def test_an_answer_that_was_not_liked_is_none_in_a_table_either(
    disliked: Any, tmp_path: Path
) -> None:
    """CSV knows text alone, and pandas writes True and False."""
    rows = [
        {
            "prompt": ASKED,
            "completion": GOOD,
            "label": type(disliked)(1) if disliked == 0 else "True",
        },
        {"prompt": ASKED, "completion": BAD, "label": disliked},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    for source in (rows, tmp_path):
        assert load_preferences(source)["chosen"][:] == [dialogue(ASKED, GOOD), None]


def test_a_question_by_another_name_is_not_passed_over(tmp_path: Path) -> None:
    """As in Intel/orca_dpo_pairs. Both answers begin with a word that nobody asked."""
    row = {"system": "", "question": ASKED, "chosen": f"Well, {GOOD}", "rejected": f"Well, {BAD}"}
    for source in ([row], datasets.Dataset.from_list([row]), as_parquet(row, tmp_path)):
        with refused(DataError, "answers to what stands in the column 'question'", "to 'prompt'"):
            load_preferences(source)
    whole = row | {side: f"{ASKED} {row[side]}" for side in ("chosen", "rejected")}
    assert preference_pairs(load_preferences([whole]))[0][0]["prompt"] == f"{ASKED} Well,"


def test_prompts_alone_are_no_preferences() -> None:
    with refused(DataError, "no answers in a column 'chosen' (they have prompt)"):
        preference_pairs(load_preferences([{"prompt": "a"}]))


def test_a_split_that_is_not_there_is_not_made_of_another(tmp_path: Path) -> None:
    row = FORMS["hh-rlhf"]
    with refused(DataError, "has no split 'test': it has train_prefs"):
        load_preferences(as_dict(row, tmp_path), "test")
    with refused(DataError, "holds one data set, which is taken as 'train'"):
        load_preferences(as_saved(row, tmp_path), "test")
    path = as_json(row, tmp_path)
    with refused(DataError, f"{path} is one file, which is taken as 'train'", "test.jsonl"):
        load_preferences(path, "test")
    assert len(load_preferences(tmp_path)) == 3, "files that name no split are 'train'"
    (tmp_path / "mine.json").rename(tmp_path / "test.json")
    with refused(DataError, "it holds saved, test.json"):
        load_preferences(tmp_path)
    assert len(load_preferences(tmp_path, "test")) == 3
    for name in ("Test.json", "hh_test.json", "hh-rlhf.validation.json"):
        other = tmp_path / name.split(".")[0]
        other.mkdir()
        (other / name).write_text(json.dumps([row]))
        (other / "hh_train.json").write_text(json.dumps([row]))
        with refused(DataError, "holds neither train.jsonl", name):
            load_preferences(other)
    (tmp_path / "notes.xml").write_text("<a/>")
    with refused(DataError, "notes.xml is of no known kind", ".parquet"):
        load_preferences(tmp_path / "notes.xml")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("train.parquet", b"PAR1 no more", ("cannot be read as parquet", "fetch it again")),
        ("train.csv", b'chosen\n"a\n', ("cannot be read as a table",)),
        ("train.csv", b"question,answer\na,b\n", ("row 0: 'chosen' is missing",)),
        ("train.csv", b"chosen\n\xff\n", ("cannot be read as a table", "UTF-8")),
        ("train.json", b'[{"chosen": "a"}', ("row 0: it is not JSON",)),
        ("train.json", b'[{"chosen": "a"}, 3]', ("row 1: 'chosen' is missing (it is no object)",)),
        ("train.json.gz", b"[no gzip", ("cannot be read past line 0", "fetch it again")),
        ("train.csv", b"chosen\n", ("holds no rows",)),
        ("train.csv", b"", ("cannot be read as a table",)),
        ("train.csv", b"prompt,chosen\na,b,c\nd,e,f\n", ("row 0: it has 3 cells for 2",)),
        ("train.csv", b"prompt,chosen\na,b\nc\n", ("row 1: it has 1 cells for 2 columns",)),
        ("train.parquet", b"version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",)),
    ],
)
def test_a_broken_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes, parts: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(DataError, str(tmp_path / name), *parts):
        load_preferences(tmp_path)


def test_columns_of_another_parquet_file_are_named(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"question": "a"}]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"'chosen' is missing \(it has \['question'\]\)") as error:
        load_preferences(tmp_path)
    one_line(error)


def test_a_streamed_data_set_is_refused_with_what_to_do() -> None:
    rows = datasets.Dataset.from_list([FORMS["hh-rlhf"]]).to_iterable_dataset()
    with refused(DataError, "streamed", "data.take"):
        load_preferences(rows)


@pytest.mark.parametrize("split", ["train", "train_prefs"])
def test_the_download_gets_what_it_is_given(split: str, monkeypatch: Any) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **given: Any) -> Any:
        asked.update(given, name=name)
        if given["split"] != split:
            raise ValueError(f'Unknown split "{given["split"]}". Should be one of [{split!r}].')
        return datasets.Dataset.from_list([FORMS["UltraFeedback"]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_preferences("org/name@v2", data_dir="x", token="hf_x", cache_dir="/c")
    assert rows.column_names == ["prompt", "chosen", "rejected"]
    assert asked == {
        "name": "org/name", "split": split, "revision": "v2", "data_dir": "x", "token": "hf_x",
        "cache_dir": "/c",
    }  # fmt: skip


def test_a_judge_is_trained_on_preferences_of_any_form(tmp_path: Path, capsys: Any) -> None:
    BertModel(tiny_config()).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    row = {"prompt": "w1", "chosen": "good w2", "rejected": "bad w3"}
    messages = {
        "chosen": [said("user", "w1"), said("assistant", "good w2")],
        "rejected": [said("user", "w1"), said("assistant", "bad w3")],
    }
    settings = {"device": "cpu", "bf16": False, "batch_size": 2}
    scores = []
    for i, pairs in enumerate(([row] * 4, datasets.Dataset.from_list([messages] * 4))):
        folder = tmp_path / f"adapter-{i}"
        train_reward_model(pairs, tmp_path / "base", output=folder, **settings)
        judge = load_judge(tmp_path / "base", adapter=folder)
        scores.append(judge(["w1", "w1"], ["good", "bad"]))
    assert scores[0] == scores[1]
    assert capsys.readouterr().out.count("preferences: 4 pairs from 4 rows\n") == 1


def test_line_ends_and_missing_blank_lines_change_no_prompt() -> None:
    text = "\n\nHuman: FIRST\n\nAssistant: a\n\nHuman: SECOND\n\nAssistant: b"
    for same in (text, text.strip(), text.replace("\n", "\r\n"), " \n" + text):
        assert first_prompt(same) == "FIRST"
        assert parse_dialogue(same) == parse_dialogue(text)
    assert first_prompt(text.strip().split("\n\nHuman: S")[0]) == "FIRST"
    system = "System: Be kind." + text
    assert parse_dialogue(system) == [("System", "Be kind."), *parse_dialogue(text)]
    assert first_prompt(system) == "FIRST"
