"""``python -m budgetcl`` is ``budgetcl``; so several processes are started: ``torchrun ... -m budgetcl run ...``."""

from budgetcl.cli import command

if __name__ == "__main__":
    command()
