"""`python -m harness`, where the command `harness` is not on the path."""

from harness.cli import main

if __name__ == "__main__":
    main()
