"""`python -m sandpoint.cli`, where no script is installed."""

import sys

from sandpoint.cli import main

sys.exit(main())
