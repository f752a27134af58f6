"""Small stand-ins for what the original experiment fetches from the hub, laid out as it is there.

`make(folder)` leaves four folders: a GPT-2 with DLite's special tokens, a DeBERTa-v2 classifier
with one logit and a sentencepiece tokenizer, an ELECTRA for the second judge, and preference data
as in Anthropic/hh-rlhf. With them the preset `dlite` runs offline:

    RLHF_PRESET=dlite RLHF_POLICY=... RLHF_REWARD_MODEL=... RLHF_SECOND_JUDGE=... RLHF_DATA=...

or, to make them by hand: python tests/support/lookalikes.py FOLDER
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import torch

SPECIAL = ["### End", "### Instruction:", "### Response:\n"]

TASKS = {
    "bake {}": ["bread", "chicken", "a carrot cake", "salmon", "potatoes", "cookies", "a pie"],
    "learn {}": ["the guitar", "Spanish", "chess", "to swim", "to knit", "Python", "to draw"],
    "clean {}": ["a carpet", "an oven", "windows", "a bike chain", "leather shoes", "a laptop"],
    "choose {}": ["a tent", "a used car", "running shoes", "a school", "a desk", "a camera"],
    "grow {}": ["tomatoes", "herbs indoors", "a lawn", "roses", "an apple tree", "beans"],
}
REQUESTS = ["How do I {}?", "what's the best way to {}", "Can you give me\ntips to {}?"]
GOOD = "To {}, plan it first, take your time, and check the result before you go on. Good luck!"
BAD = "I don't know much about how to {}."


def preferences() -> list[dict[str, str]]:
    """Rows in hh-rlhf's form; some of more turns, some too long, one that is not a dialogue."""
    rows = []
    tasks = [frame.format(thing) for frame, things in TASKS.items() for thing in things]
    for i, task in enumerate(tasks * len(REQUESTS)):
        request = REQUESTS[i // len(tasks)].format(task)
        if i % 11 == 5:
            request += " I have looked everywhere, asked all of my friends, and still do not know."
        start = f"\n\nHuman: {request}\n\nAssistant:"
        if i % 4 == 1:
            start += f" Do you mean to {task} today?\n\nHuman: Yes, please.\n\nAssistant:"
        rows.append(
            {"chosen": f"{start} {GOOD.format(task)}", "rejected": f"{start} {BAD.format(task)}"}
        )
    rows.insert(7, {"chosen": "Nobody speaks here.", "rejected": "\n\nHuman: And here?"})
    return rows


def make(folder: str | Path) -> dict[str, Path]:
    """Make all four in `folder`: the paths "policy", "reward_model", "second_judge" and "data"."""
    folder = Path(folder)
    texts = [text for row in preferences() for text in row.values()]
    return {
        "policy": make_policy(folder / "dlite", texts),
        "reward_model": make_reward_model(folder / "deberta", texts),
        "second_judge": make_second_judge(folder / "electra", texts),
        "data": make_data(folder / "hh-rlhf"),
    }


def make_policy(folder: Path, texts: list[str]) -> Path:
    """A two-layer GPT-2 with a byte-level BPE in which "### End" is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    folder.mkdir(parents=True)
    bpe.model.save(str(folder))
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL})
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def make_second_judge(folder: Path, texts: list[str]) -> Path:
    """A two-layer ELECTRA with one logit, and a tokenizer that knows the texts' characters."""
    from transformers import ElectraConfig, ElectraForSequenceClassification, ElectraTokenizerFast

    letters = sorted({letter for text in texts for letter in text.lower() if not letter.isspace()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary += letters + [f"##{letter}" for letter in letters]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    ElectraTokenizerFast.from_pretrained(folder, model_max_length=512).save_pretrained(folder)
    config = ElectraConfig(
        vocab_size=len(vocabulary), embedding_size=16, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, num_labels=1, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ElectraForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_reward_model(folder: Path, texts: list[str]) -> Path:
    """A two-layer DeBERTa-v2 with one logit; of its tokenizer only the sentencepiece model."""
    import sentencepiece
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.replace("\n", " ") for text in texts),
        model_writer=model,
        vocab_size=200,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True)
    (folder / "spm.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    (folder / "added_tokens.json").write_text(json.dumps({"[MASK]": size}))
    settings = {"tokenizer_class": "DebertaV2Tokenizer", "vocab_type": "spm"}
    settings |= {"do_lower_case": False, "split_by_punct": False, "model_max_length": 512}
    settings |= {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk")}
    settings |= {"bos_token": "[CLS]", "eos_token": "[SEP]", "mask_token": "[MASK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = DebertaV2Config(
        vocab_size=size + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        type_vocab_size=0,
        # As in microsoft/deberta-v3-large.
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        pooler_dropout=0,
        pooler_hidden_act="gelu",
        pooler_hidden_size=32,
        num_labels=1,
        initializer_range=0.3,  # wide, so that the scores differ plainly
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_data(folder: Path) -> Path:
    """`helpful-base/train.jsonl.gz` and `test.jsonl.gz`, without a request in common."""
    rows = preferences()
    target = folder / "helpful-base"
    target.mkdir(parents=True)
    for split, part in (("test", rows[::4]), ("train", [r for i, r in enumerate(rows) if i % 4])):
        with gzip.open(target / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in part)
    return folder


if __name__ == "__main__":
    for name, path in make(sys.argv[1]).items():
        print(f"RLHF_{name.upper()}={path.resolve()}")
