"""`python -m qra_search` is `qra`."""

from qra_search.app.cli import main

if __name__ == "__main__":
    main()
