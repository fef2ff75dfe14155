"""Has ``optimum-cli``, which imports every file of this folder, import skillprune: then it reads pruned checkpoints.

None of the folders has an ``__init__.py``: they are shared by the distributions that extend optimum.
"""

import skillprune  # noqa: F401
