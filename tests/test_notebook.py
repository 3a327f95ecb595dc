"""A lesson becomes a notebook; without jupytext it says what to install."""

import json
import sys
from pathlib import Path

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


@pytest.mark.slow
def test_a_notebook_runs_and_draws(tmp_path, monkeypatch):
    """Lesson 01 in a kernel of its own, in a folder without the course."""
    for needed in ("jupytext", "ipykernel"):
        pytest.importorskip(needed, exc_type=ImportError)
    nbclient = pytest.importorskip("nbclient", exc_type=ImportError)
    nbformat = pytest.importorskip("nbformat", exc_type=ImportError)
    monkeypatch.setenv("PRECSIM_QUICK", "1")
    monkeypatch.setenv("PRECSIM_ANSWERS", "1")
    lesson = next(Path(__file__).resolve().parents[1].glob("lessons/01_*.py"))
    notebook = nbformat.read(to_notebook(lesson, tmp_path), as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    said = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "e4m3 goes up to 448" in said
    assert "image/png" in said
    assert (tmp_path / "figures" / "01_the_grid.png").exists()


@pytest.mark.slow
def test_a_notebook_stops_at_a_guess_and_goes_on_from_it(tmp_path):
    for needed in ("jupytext", "ipykernel"):
        pytest.importorskip(needed, exc_type=ImportError)
    nbclient = pytest.importorskip("nbclient", exc_type=ImportError)
    nbformat = pytest.importorskip("nbformat", exc_type=ImportError)
    predict = "from precsim.lesson import predict\npredict('how much', guess, 42)"
    cells = [
        nbformat.v4.new_code_cell(text)
        for text in ("guess = None", predict, "guess = '?'", predict)
    ]
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(cells=cells), allow_errors=True, timeout=60
    )
    client.execute()
    waits, answer = (json.dumps(cells[place].outputs) for place in (1, 3))
    assert "what is your guess?" in waits
    assert "42" not in waits.replace("predict('how much', guess, 42)", "")
    assert "Traceback" not in waits
    assert "how much: 42  (no guess)" in answer
