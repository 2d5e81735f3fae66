"""Checks every dependency against deny.toml: its licence expression, its source, and the banned crates.

It stands in for `cargo deny check licenses bans sources` where cargo-deny is not installed. It reads what each crate
declares; unlike cargo-deny it does not read the licence files themselves.
"""

import json
import re
import subprocess
import sys
import tomllib


def allowed(expression, allow):
    """Whether an SPDX expression (or the old `A/B` form) can be satisfied by allowed licences alone."""
    tokens = re.findall(r"\(|\)|[A-Za-z0-9.+-]+", expression.replace("/", " OR "))
    position = 0

    def peek():
        return tokens[position] if position < len(tokens) else None

    def take():
        nonlocal position
        position += 1
        return tokens[position - 1]

    def atom():
        if peek() == "(":
            take()
            value = either()
            take()
            return value
        name = take()
        if peek() == "WITH":
            take()
            name += " WITH " + take()
        return name in allow

    def both():
        value = atom()
        while peek() == "AND":
            take()
            value = atom() and value
        return value

    def either():
        value = both()
        while peek() == "OR":
            take()
            value = both() or value
        return value

    value = either()
    return value and position == len(tokens)


def main():
    with open("deny.toml", "rb") as file:
        deny = tomllib.load(file)
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    packages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    allow = set(deny["licenses"]["allow"])
    sources = {"registry+" + source for source in deny["sources"]["allow-registry"]}
    banned = {entry["crate"] for entry in deny["bans"]["deny"]}
    wrong = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if not allowed(package["license"] or "none", allow):
            wrong.append(f"{name}: licence {package['license']} is not allowed")
        if package["source"] is not None and package["source"] not in sources:
            wrong.append(f"{name}: source {package['source']} is not allowed")
        if package["name"] in banned:
            wrong.append(f"{name}: banned")
    print("\n".join(wrong) or f"{len(packages)} packages: licences, sources and bans agree with deny.toml")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
