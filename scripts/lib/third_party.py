"""Writes what is linked into the binary, with the licences under which that may be done. See scripts/release."""

import collections
import json
import pathlib
import re
import sys

# How crates call the files that must go with a copy.
TEXTS = re.compile(r"^(LICEN[CS]E|COPYING|NOTICE|UNLICENSE|COPYRIGHT)([-._].*)?$", re.I)
# Crates that leave the manifest's field out; deny.toml says the same.
CLARIFIED = {"cloudevents-sdk": "Apache-2.0"}


def linked(metadata):
    """The crates that end up in the binary: no tools of the build or the tests."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    found, waiting = set(), [root]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
            if None in kinds and dependency["pkg"] not in found:
                found.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    packages = (package for package in metadata["packages"] if package["id"] in found)
    return sorted(packages, key=lambda package: (package["name"], package["version"]))


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    for file in sorted(folder.iterdir()):
        if file.is_file() and TEXTS.match(file.name):
            text = file.read_text(errors="replace").replace("\r\n", "\n").strip("\n")
            yield text


def main():
    packages = linked(json.load(sys.stdin))
    if len(packages) < 50:
        sys.exit(f"only {len(packages)} crates: that cannot be all")
    who = collections.defaultdict(list)
    lines = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence = package["license"] or CLARIFIED.get(package["name"])
        if not licence:
            sys.exit(f"{name} names no licence; clarify it here and in deny.toml")
        lines.append(f"{name}: {licence}, {package['repository'] or 'https://crates.io/crates/' + package['name']}")
        for text in texts(package):
            who[text].append(name)
    print("Outrigger contains these libraries. Each is used under one of the licences that it offers.\n")
    print("\n".join(lines))
    for text, names in sorted(who.items(), key=lambda pair: pair[1]):
        print(f"\n{'=' * 80}\n{', '.join(names)}\n\n{text}")


main()
