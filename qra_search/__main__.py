"""`python -m qra_search` is `qra`: launchers such as `torchrun` start a module."""

from qra_search.app.cli import main

if __name__ == "__main__":
    main()
