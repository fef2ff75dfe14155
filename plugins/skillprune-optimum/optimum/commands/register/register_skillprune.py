"""Has ``optimum-cli`` import skillprune, after which it reads pruned checkpoints; every file of this folder is imported.

None of the folders has an ``__init__.py``: they are shared by the distributions that extend optimum.
"""

import skillprune  # noqa: F401
