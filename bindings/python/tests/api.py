"""The public names of the installed package and their signatures, against `api.txt`, and that each has a docstring:

    python bindings/python/tests/api.py

With AMPOULE_WRITE set, writes `api.txt` anew.
"""

import ast
import difflib
import inspect
import os
import pathlib
import sys

import ampoule

LEDGER = pathlib.Path(__file__).resolve().parents[1] / "api.txt"
# The public names with underscores: what a `with` statement calls.
SPECIAL = {"__enter__", "__exit__"}
DEFINED = {node.name: node for node in ast.parse(inspect.getsource(ampoule)).body if hasattr(node, "name")}
undocumented = set()


def function(node, owner=""):
    for decorator in node.decorator_list:
        yield f"@{ast.unparse(decorator)}"
    yield f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
    if node.name not in SPECIAL and not ast.get_docstring(node):
        undocumented.add(owner + node.name)


def members(node):
    """The lines of what a class has by itself or by a private base of it, which users do not see."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id.startswith("_"):
            yield from members(DEFINED[base.id])
    for member, after in zip(node.body, [*node.body[1:], None]):
        if isinstance(member, ast.AnnAssign) and not member.target.id.startswith("_"):
            yield ast.unparse(member)
            # Python keeps no docstring of a field; pdoc and editors read the string that follows it.
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                undocumented.add(f"{node.name}.{member.target.id}")
        elif isinstance(member, ast.FunctionDef) and (member.name in SPECIAL or not member.name.startswith("_")):
            yield from function(member, f"{node.name}.")


def lines():
    for name in sorted(ampoule.__all__):
        node = DEFINED[name]
        if isinstance(node, ast.FunctionDef):
            yield from function(node)
            continue
        if not ast.get_docstring(node):
            undocumented.add(name)
        bases = [ast.unparse(base) for base in [*node.bases, *node.keywords] if not ast.unparse(base).startswith("_")]
        yield f"class {name}({', '.join(bases)})" if bases else f"class {name}"
        for line in members(node):
            yield f"    {line}"


found = [f"{line}\n" for line in lines()]
hidden = sorted(name for name in DEFINED if not name.startswith("_") and name not in ampoule.__all__)
for name in sorted(undocumented):
    print(f"{name} has no docstring", file=sys.stderr)
for name in hidden:
    print(f"{name} is public and not in __all__", file=sys.stderr)
if not ampoule.__doc__ or not found:
    sys.exit("the package has no docstring, or nothing in it")
if os.environ.get("AMPOULE_WRITE"):
    LEDGER.write_text("".join(found))
known = LEDGER.read_text().splitlines(keepends=True)
changes = list(difflib.unified_diff(known, found, "api.txt", "the package"))
if changes:
    sys.stderr.writelines(changes)
    print(f"the public API is another than {LEDGER.name} says; if that is meant: AMPOULE_WRITE=1", *sys.argv, file=sys.stderr)
print(f"API: {len(found)} lines, {len(changes)} changed, {len(undocumented)} without a docstring")
sys.exit(bool(changes or undocumented or hidden))
