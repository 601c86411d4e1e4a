"""fym: learn a motion from one clip, give it to new content.

Import the parts where they are used (`fym.config`, `fym.video`, `fym.tune`, `fym.generate`, ...); nothing
heavy is imported here, so `import fym` and `fym --help` stay quick.
"""

from fym.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "__version__"]
