"""What an app starts that installed the bundle: the MCP server, for the directories that its user chose.

They come as arguments, for an app cannot put a list into a variable: `main.py DIRECTORY...`.
"""

import os
import sys

from sandpoint.cli import main

if __name__ == "__main__":
    os.environ["SANDPOINT_ALLOWED_DIRS"] = ":".join(sys.argv[1:])
    sys.exit(main(["serve"]))
