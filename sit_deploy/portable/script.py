"""Checks the bundles of this folder on this machine: `python check.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    HERE = Path(__file__).absolute().parent
    sys.path.insert(0, str(HERE))
    if sys.version_info < (3, 10):  # noqa: UP036  where it is copied to, older ones may be
        version = ".".join(map(str, sys.version_info[:2]))
        sys.stderr.write(f"Error: check.py needs Python 3.10 or newer, and this is {version}\n")
        sys.exit(2)
    try:
        from sit_bundle.portable.check import main
    except KeyboardInterrupt:  # NumPy takes a while
        sys.stderr.write("Error: interrupted; nothing was written\n")
        sys.exit(2)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("numpy", "PIL"):
            reason = f"{error.name} is not installed"
        else:  # one that is of another Python, or half copied
            reason = f"what it needs cannot be imported ({' '.join(str(error).split())[:300]})"
        sys.stderr.write(f"Error: {reason}; run `pip install -r requirements.txt` in {HERE}\n")
        sys.exit(2)
    main(HERE)
