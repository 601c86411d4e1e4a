"""`python -m fym` is the command `fym`."""

import sys

from fym.cli import main

sys.exit(main())
