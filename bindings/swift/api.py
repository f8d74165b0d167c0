#!/usr/bin/env python3
"""The public API of a Swift symbol graph, a declaration a line: api.py Ampoule.symbols.json > api.txt

Fails where a declaration has no documentation of its own.
"""

import json
import sys


def main(path):
    with open(path) as file:
        graph = json.load(file)
    names, lines, bare = {}, set(), []
    for symbol in graph["symbols"]:
        identifier = symbol["identifier"]["precise"]
        path = ".".join(symbol["pathComponents"])
        names[identifier] = path
        # What Swift writes by itself is told by the conformances.
        if "::SYNTHESIZED::" in identifier or symbol["names"]["title"] in ("==(_:_:)", "hash(into:)", "hashValue", "!=(_:_:)"):
            continue
        declaration = "".join(fragment["spelling"] for fragment in symbol["declarationFragments"])
        lines.add(f"{path}: {declaration}")
        if not symbol.get("docComment", {}).get("lines"):
            bare.append(path)
    for relation in graph["relationships"]:
        if relation["kind"] == "conformsTo" and relation["source"] in names:
            protocol = relation.get("targetFallback") or names.get(relation["target"], relation["target"])
            # The compiler's own, which nothing says in the source.
            if protocol in ("Swift.Copyable", "Swift.Escapable", "Swift.SendableMetatype"):
                continue
            lines.add(f"{names[relation['source']]}: conforms to {protocol}")
    print("\n".join(sorted(lines)))
    if bare:
        sys.exit(f"without documentation: {', '.join(bare)}")


if __name__ == "__main__":
    main(sys.argv[1])
