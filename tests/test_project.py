"""What the project says about itself is so: versions, README's file tree, no names of a machine."""

import re
from pathlib import Path

import pytest

import precsim

ROOT = Path(__file__).resolve().parents[1]
OURS = ("precsim", "tests", "lessons", "figures", ".ci")


def test_changelog_and_citation_have_the_version_of_the_package():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == precsim.__version__
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [precsim.__version__]


def layout():
    """Return the paths that the first block under README's "## Layout" names, one a line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## Layout\n")[2].partition("\n## ")[0]
    block = section.partition("```")[2].partition("\n")[2].partition("```")[0]
    return [line.split()[0] for line in block.splitlines() if line.strip()]


def test_every_path_in_the_readme_exists():
    paths = layout()
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [path for path in paths if path.endswith("/") != (ROOT / path).is_dir()] == []


def test_every_part_of_the_package_is_in_the_readme():
    parts = {
        f"precsim/{child.name}" + "/" * child.is_dir()
        for child in (ROOT / "precsim").iterdir()
        if child.suffix == ".py" or (child / "__init__.py").exists()
    }
    assert {part for part in parts if "/__" not in part} <= set(layout())


def test_no_file_names_a_place_outside_the_project():
    # In halves, or this file would be its own first finding.
    forbidden = re.compile(b"/" + b"work/|\\.\\./" + b"shared")
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in OURS for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts and path.name != ".git"]
    assert len(files) > 20
    assert [str(path) for path in files if forbidden.search(path.read_bytes())] == []


def test_modules_under_a_name_that_is_something_else_can_be_imported():
    """`precsim.observe` and `precsim.report` are also packages."""
    import precsim.observe.counters as counting
    import precsim.report.page as paper

    assert (precsim.observe.__module__, precsim.report.__module__) == (
        "precsim.show.observed",
        "precsim.report.write",
    )
    assert counting.Counters is precsim.Counters
    assert paper.__name__ == "precsim.report.page"


def test_every_public_name_can_be_had_is_listed_and_is_suggested():
    named = set(precsim.__all__) | {"__version__"}
    assert named <= set(dir(precsim))
    assert not {"Any", "sys", "import_module"} & set(dir(precsim))
    for name in named:
        getattr(precsim, name)
    with pytest.raises(AttributeError, match="no attribute 'qunatize'") as error:
        precsim.qunatize  # noqa: B018
    assert (error.value.name, error.value.obj) == (
        "qunatize",
        precsim,
    )  # Python suggests from these
