"""Settings that hold for every test: one BLAS thread, and Hypothesis profiles."""

import os

# Read once, when NumPy loads.  Many small products on many threads are slower, not faster, and
# pytest-xdist already keeps every core busy.
for library in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
    os.environ.setdefault(f"{library}_THREADS", "1")

from hypothesis import settings

# "quick" starts from the profile that Hypothesis chose: on a CI machine its own "ci", in which
# nothing is left to chance.  For more: pytest --hypothesis-profile=thorough
settings.register_profile("quick", deadline=None, max_examples=50)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=2000)
settings.load_profile("quick")
