"""`python -m t2g_jax` is the `t2g` command."""

import sys

from t2g_jax.cli import main

sys.exit(main())
