"""`python -m slipstream.launch_server`: the server, by the name that SGLang users know."""

import sys

from slipstream.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
