"""A lesson as a Jupyter notebook, made by jupytext."""

from __future__ import annotations

from pathlib import Path

MISSING = "notebooks need jupytext: pip install 'precsim[lessons]'"


class NotebookError(RuntimeError):
    """A notebook cannot be made; the message says what to install."""


def to_notebook(lesson: Path, folder: Path) -> Path:
    """Write a lesson into a folder as .ipynb, without outputs, and return its path.

    Raises `NotebookError` where jupytext is missing, `OSError` where it cannot write.
    """
    try:
        import jupytext
    except ImportError as error:
        raise NotebookError(MISSING) from error
    notebook = jupytext.read(lesson, fmt="py:percent")
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3", "language": "python", "name": "python3",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / lesson.with_suffix(".ipynb").name
    jupytext.write(notebook, path)
    return path
