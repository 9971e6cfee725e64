"""`python -m slipstream.launch_server`: the server, by the name that SGLang users know."""

import sys

from slipstream.cli.serve import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
