"""A lesson becomes a notebook; without jupytext it says what to install."""

import json
import sys

import pytest
from test_catalogue import HEAD

from precsim.lesson.notebook import NotebookError, to_notebook


def test_cells_without_outputs(tmp_path):
    pytest.importorskip("jupytext", exc_type=ImportError)
    lesson = tmp_path / "09_plateau.py"
    lesson.write_text(HEAD)
    notebook = json.loads(to_notebook(lesson, tmp_path / "made").read_text())
    assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown", "code"]
    assert "".join(notebook["cells"][1]["source"]) == 'print("hello")'
    assert notebook["cells"][1]["outputs"] == []
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_without_jupytext(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    with pytest.raises(NotebookError, match=r"precsim\[lessons\]"):
        to_notebook(tmp_path / "x.py", tmp_path)
