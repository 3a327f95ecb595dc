"""A lesson's figure is three files, and the same figure is the same bytes."""

import json
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from precsim.lesson import save
from precsim.lesson.figures import rounded
from precsim.lesson.session import Session, running


def figure():
    fig = Figure()
    fig.subplots().plot([1, 2], [3, 4])
    return fig


def test_three_files(tmp_path):
    for _ in range(2):
        with running(Session(figures=tmp_path)) as session:
            save(figure(), "99_line", {"x": np.array([1 / 3, np.nan]), "name": "a", "none": None})
        kept = {path.suffix: path.read_bytes() for path in session.saved}
        assert kept.keys() == {".png", ".svg", ".json"}
    assert kept == {path.suffix: path.read_bytes() for path in session.saved}
    data = json.loads(kept[".json"])
    assert data == {
        "figure": "99_line",
        "data": {"x": [0.333333, "nan"], "name": "a", "none": None},
    }


@pytest.mark.parametrize("name", ["", "a.png", "figures/a"])
def test_names(name, tmp_path):
    with running(Session(figures=tmp_path)), pytest.raises(ValueError, match="expected a name"):
        save(figure(), name, {})


def test_six_digits_in_any_nesting():
    data = {"a": (np.float32(0.1), [np.int64(3)]), 1: "text"}
    assert rounded(data) == {"a": [0.1, [3]], "1": "text"}


@pytest.mark.parametrize("script", ["lessons/99_line.py", "lessons/zh/99_line.py"])
def test_the_figures_of_a_script_lie_beside_its_lessons(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / script), raising=False)
    with running(Session()) as session:
        save(figure(), "99_line", {})
    assert {path.parent for path in session.saved} == {tmp_path / "figures"}
