"""``python -m budgetcl`` is ``budgetcl``; so several processes are started: ``torchrun ... -m budgetcl run ...``."""

import sys

from budgetcl.cli import main

if __name__ == "__main__":
    sys.exit(main())
