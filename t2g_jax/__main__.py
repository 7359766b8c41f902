"""The `t2g` command, also `python -m t2g_jax`. Where only the losses are installed, it says so."""

import os
import sys

from t2g_jax.errors import EXIT_USER_ERROR
from t2g_jax.installation import pip_install
from t2g_jax.printing import tell


def main() -> int:
    """Runs the command; a line names the extra that brings what is missing."""
    try:
        from t2g_jax.cli import main as command

        return command()
    except ModuleNotFoundError as error:
        of_ours = (error.name or "t2g_jax").partition(".")[0] == "t2g_jax"
        if of_ours or os.environ.get("T2G_DEBUG") == "1":
            raise
        tell(f"t2g: there is no {error.name} here, which training needs: {pip_install('train')}")
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
