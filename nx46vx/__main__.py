"""``python -m nx46vx``."""

from nx46vx.cli.main import entry

if __name__ == "__main__":
    entry()
