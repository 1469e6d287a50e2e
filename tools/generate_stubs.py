"""Writes the Python stubs of protos/ to a folder laid out like atelier/pb.

`make protos` runs it on atelier/pb; a test runs it on a temporary folder and compares. The generated
modules import each other as `atelier.pb.…`: protoc derives `atelier.…` from the proto packages, so the
prefix is corrected here.
"""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

REPOSITORY = Path(__file__).resolve().parent.parent
PROTOS = REPOSITORY / "protos"
PROTO_IMPORT = re.compile(r"^(from|import) atelier\.(\w+)\.v1", re.MULTILINE)


def include_paths() -> list[str]:
    """Folders with the .proto files that ours import: Google's well-known types and common protos."""
    import google.rpc

    well_known = resources.files(grpc_tools) / "_proto"
    common_protos = Path(next(iter(google.rpc.__path__))).parent.parent
    return [str(PROTOS), str(well_known), str(common_protos)]


def generate(package_folder: Path) -> None:
    """Writes the stubs so that `package_folder` is the package `atelier.pb`."""
    staging = package_folder / "atelier"
    package_folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}={package_folder}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    status = protoc.main(["protoc", *(f"-I{path}" for path in include_paths()), *outputs, *sources])
    if status != 0:
        raise SystemExit(status)
    for generated in sorted(staging.rglob("*.py*")):
        _adopt(generated, package_folder / generated.relative_to(staging))
    for folder in sorted(staging.rglob("*"), reverse=True):
        folder.rmdir()
    staging.rmdir()


def _adopt(generated: Path, target: Path) -> None:
    text = PROTO_IMPORT.sub(r"\1 atelier.pb.\2.v1", generated.read_text())
    generated.unlink()
    if target.name.endswith("_grpc.py") and "Servicer" not in text:
        return  # messages only: an empty service module would be noise
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    for package in (target.parent, target.parent.parent, target.parent.parent.parent):
        (package / "__init__.py").touch()


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "atelier" / "pb")
