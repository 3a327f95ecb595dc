"""``python -m precsim`` is the command ``precsim``."""

from precsim.cli import main

if __name__ == "__main__":
    main()
