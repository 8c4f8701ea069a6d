"""`ost` as a process of its own, whatever is installed on the path."""

import sys

from onesteptrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
