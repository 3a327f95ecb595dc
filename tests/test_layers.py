"""The house has floors: a part imports only from the parts below it, and no import runs in a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "precsim"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

PARTS = (
    "formats", "testing", "proofs", "backend", "engine", "nn", "observe",
    "recipes", "runs", "analyse", "show", "report", "lesson", "demo",
    "cli_shared", "cli_verify", "cli_runs", "cli_analyse", "cli_drift", "cli_scan", "cli_scale", "cli_views",
    "cli_lesson", "cli_plot", "cli_cost", "cli_recipes", "cli_sweep", "cli", "__main__",
)  # fmt: skip

ENGINE = ("delayed", "rule", "policy", "context", "tape", "tensor", "dispatch", "ops")

MOST_LINES = 400


def imports(name, path, types_too=True):
    """Yield the full names that a module imports, inside functions as well.

    ``from precsim.engine import ops`` gives precsim.engine.ops if that is a module, else
    precsim.engine.  With `types_too` false, what stands under TYPE_CHECKING is left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    if not types_too:
        guards = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
        ]
        skipped = {id(inner) for guard in guards for inner in ast.walk(guard)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).strip(".")
            for alias in node.names:
                longer = f"{base}.{alias.name}"
                yield longer if longer in FILES or base == "precsim" else base


def part_of(name):
    return name.split(".")[1] if "." in name else None


@pytest.mark.parametrize("name", [name for name in FILES if name != "precsim"])
def test_a_part_imports_only_from_parts_below_it(name):
    part = part_of(name)
    assert part in PARTS, f"which floor is {name} on?  Add it to PARTS."
    allowed = {f"precsim.{below}" for below in PARTS[: PARTS.index(part) + 1]}
    allowed |= {"precsim.__version__"} | ({"precsim"} if part in ("cli", "__main__") else set())
    for imported in imports(name, FILES[name]):
        if imported.partition(".")[0] == "precsim":
            top = ".".join(imported.split(".")[:2])
            assert top in allowed, f"{name} imports {imported}, which is not below {part}"


@pytest.mark.parametrize("file", ENGINE)
def test_engine_files_import_only_from_engine_files_below_them(file):
    name = f"precsim.engine.{file}"
    above = {f"precsim.engine.{other}" for other in ENGINE[ENGINE.index(file) + 1 :]}
    assert above.isdisjoint(imports(name, FILES[name], types_too=False))


def test_no_import_runs_in_a_circle():
    below = {
        name: {i for i in imports(name, path, types_too=False) if i in FILES and i != name}
        for name, path in FILES.items()
        if path.name != "__init__.py"
    }
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for imported in sorted(below.get(name, ())):
                visit(imported, [*trail, name])
            done.add(name)

    for name in below:
        visit(name, [])


@pytest.mark.parametrize(
    ("libraries", "files"),
    [
        (("cupy", "cupyx"), {"cupy"}),
        (("numba", "llvmlite"), {"fused", "fused_bits", "fused_formula"}),
    ],
)
def test_few_files_import_what_is_optional(libraries, files):
    importers = {
        name
        for name, path in FILES.items()
        if any(i.partition(".")[0] in libraries for i in imports(name, path))
    }
    assert importers == {f"precsim.backend.{file}" for file in files}


@pytest.mark.parametrize(
    "path",
    [path for folder in ("precsim", "tests", "lessons") for path in (ROOT / folder).rglob("*.py")],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_file_is_too_long_to_read(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines: split it at the seam between two ideas"


def test_importing_precsim_loads_nothing_heavy():
    heavy = ("matplotlib", "typer", "rich", "hypothesis", "cupy", "jinja2", "numba", "plotly")
    code = f"import sys, precsim; print(*[m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
