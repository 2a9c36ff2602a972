"""`python -m esmtune` is `esmtune`."""

from esmtune.cli import main

if __name__ == "__main__":
    main()
