"""MathJax from the npm registry: fetched once, checked by its hash, kept outside the repository."""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import urllib.request
from pathlib import Path

from rlhf_tutorial.assets import cache_dir
from rlhf_tutorial.errors import AssetError, reason

VERSION = "3.2.2"
SHA256 = "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09"
URL = f"https://registry.npmjs.org/mathjax/-/mathjax-{VERSION}.tgz"

# The one file that typesets, its fonts, and TeX's rarer commands, which it loads when asked for.
WANTED = ("es5/tex-mml-chtml.js", "es5/output/chtml/fonts/woff-v2/", "es5/input/tex/extensions/")


def tarball() -> Path:
    """The registry's tarball on this machine, of the pinned content.

    Raises:
        AssetError: it is not here and cannot be fetched, or what came is not what is pinned.
    """
    path = cache_dir() / f"mathjax-{VERSION}.tgz"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
        return path
    print(f"Fetching MathJax {VERSION} from the npm registry, 6 MB", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            content = answer.read()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise AssetError(
                f"{URL} is not the MathJax {VERSION} that is pinned (another sha256): try again, "
                "then check your proxy"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise AssetError(
            f"MathJax is not in {path.parent} and could not be fetched ({reason(error)}): go "
            f"online once, or put {URL} there as {path.name}"
        ) from error
    return path


def unpack(folder: Path) -> None:
    """Write what pages need of MathJax into `folder`: `tex-mml-chtml.js` and what it loads."""
    with tarfile.open(tarball()) as archive:
        for member in archive.getmembers():
            name = member.name.removeprefix("package/")
            if member.isfile() and name.startswith(WANTED):
                target = folder / name.removeprefix("es5/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())


if __name__ == "__main__":  # with the installation, so that `make site` can do without a network
    tarball()
