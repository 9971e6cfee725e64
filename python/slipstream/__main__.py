"""`python -m slipstream`: the same as the console script `slipstream`."""

import sys

from slipstream.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
