"""What lessons are written with: predict, measure, check, draw, try it yourself.

A lesson is a script in jupytext's percent format.  It imports from here what only a lesson needs,
and everything else from `precsim` as any user would::

    from precsim.lesson import check, exercise, predict, quick, save, seeds

Run as a script, a lesson prints and writes its figures into the repository's figures/.  `precsim
lesson run` and the tests run the same file inside a `Session`, which says how much to compute, where
figures go, and whether answers wait for guesses, and remembers what the lesson found.
"""

from precsim.lesson.exercises import exercise
from precsim.lesson.figures import save
from precsim.lesson.predictions import predict
from precsim.lesson.session import LessonError, check, quick, seeds
from precsim.lesson.step import draw_step, moment_of, show_step

__all__ = [
    "LessonError", "check", "draw_step", "exercise", "moment_of", "predict", "quick", "save",
    "seeds", "show_step",
]  # fmt: skip
