"""Runs `buf lint` over protos/ with the rules of protos/buf.yaml, offline.

buf would fetch the Google protos that ours import from its own registry. Instead protoc, which finds them in installed
packages, makes one image of everything, and buf lints our part of it. `make lint` runs `python -m tools.lint_protos`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

from tools.generate_stubs import PROTOS, include_paths

OUR_PACKAGE = "atelier"


def lint(protos: Path = PROTOS) -> list[str]:
    """What buf finds wrong, one line a finding; empty when the protos are clean."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        _build_image(protos, image)
        buf = Path(sys.executable).parent / "buf"
        command = [str(buf), "lint", str(image), "--config", str(protos / "buf.yaml"), "--path", OUR_PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = (result.stdout + result.stderr).splitlines()
    assert bool(findings) == bool(result.returncode), "buf says what it finds, and nothing else"
    return findings


def _build_image(protos: Path, image: Path) -> None:
    includes = [f"-I{protos}", *(f"-I{path}" for path in include_paths() if path != str(PROTOS))]
    sources = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    options = ["--include_imports", "--include_source_info", f"--descriptor_set_out={image}"]
    if protoc.main(["protoc", *includes, *options, *sources]) != 0:
        raise SystemExit("protoc refuses the protos; see above")


if __name__ == "__main__":
    problems = lint()
    print("\n".join(problems) or "protos are clean")
    raise SystemExit(bool(problems))
